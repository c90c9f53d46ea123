"""What is exported: a model of our own training, a masked LM, or another project's model."""

import logging
from dataclasses import dataclass

from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel

from export.config import ExportOptions
from export.loading import load_recognised
from export.recognition import DEFAULT_MAX_TOKENS, Recognised, recognise
from export.rendering import find_template
from tinyrm.manifest import Head
from tinyrm.modernbert.adapter import load_with_adapter
from tinyrm.modernbert.checkpoint import positions_of, read_config
from tinyrm.modernbert.files import checkpoint_folder
from tinyrm.spec import Spec, trained_head

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """A model that becomes a bundle, as its files describe it.

    recognised: None for a model of our own training and for a masked LM.
    """

    head: Head
    spec: Spec
    config: PreTrainedConfig
    recognised: Recognised | None = None

    def load(self, options: ExportOptions) -> PreTrainedModel | PeftModel:
        """Return the model in evaluation mode, with an adapter that is not merged. Raises InvalidInput."""
        if self.recognised:
            return load_recognised(options.model, self.recognised, options.revision)
        head = trained_head(options.trained)
        return load_with_adapter(options.model, options.adapter, revision=options.revision, head=head)


def find_source(options: ExportOptions) -> Source:
    """Return what the options name, before any weight is read.

    Raises InvalidInput for a model that cannot become a bundle, naming what it is and what is supported.
    """
    folder = checkpoint_folder(options.model, options.revision)
    recognised = None if options.is_trained_here() else recognise(options.model, folder)
    if recognised is None:
        return Source(options.head(), options.spec(), read_config(options.model, folder))
    config = read_config(options.model, folder)
    template = find_template(options.model, str(folder), recognised, options.template)
    # Relative positions have no end, but a model is not known to be good beyond those that it was made for.
    positions = positions_of(config) or config.max_position_embeddings
    default = recognised.max_tokens or min(DEFAULT_MAX_TOKENS, positions)
    max_tokens = options.token_budget(default=min(default, DEFAULT_MAX_TOKENS))
    log.info("%s: %s, template %s, %d tokens", options.model, recognised.describe(), template.name, max_tokens)
    # The instruction of the one domain is empty: these models read none.
    spec = Spec(template=template, max_tokens=max_tokens, domains={"general": ""})
    return Source(recognised.head, spec, config, recognised)
