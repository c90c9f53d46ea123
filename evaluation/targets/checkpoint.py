"""A trained checkpoint, before export, computed by torch as `transformers` does."""

from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from evaluation.target import Meter, MeteredEngine, Target, local_scorer
from tinyrm.counting import flop_counter
from tinyrm.encoding import Encoder
from tinyrm.engines.torch_checkpoint import TorchEngine
from tinyrm.errors import InvalidInput
from tinyrm.manifest import head_of_training
from tinyrm.modernbert.adapter import load_with_adapter, merge
from tinyrm.modernbert.checkpoint import load_tokenizer, read_geometry, refuse_misfit
from tinyrm.modernbert.files import ADAPTER_CONFIG, base_of, refuse_other_base
from tinyrm.scorer import Scorer
from tinyrm.spec import SPEC_FILE, Spec, read_run, trained_head


def open_checkpoint(folder: Path, device: str | None = None) -> Target:
    """Open the output folder of a training: weights, or an adapter that names its base; tokenizer and cloze.json.

    device: None for a GPU if there is one.

    Probabilities are uncalibrated (temperature 1). Raises InvalidInput.
    """
    scorer, model = checkpoint_scorer(folder, device)
    meter = Meter()
    geometry = read_geometry(model.config)
    count_flops = flop_counter(geometry, head_of_training(folder), scorer.encoder.special)
    metered = MeteredEngine(scorer.engine, geometry, model.num_parameters(), count_flops, meter)
    local = local_scorer(replace(scorer, engine=metered))
    return Target(folder.name, scorer.engine.info.name, scorer.spec, local, meter)


def checkpoint_scorer(folder: Path, device: str | None = None) -> tuple[Scorer, PreTrainedModel]:
    """Return the scorer of `open_checkpoint` and the model that it runs. Raises InvalidInput."""
    if not (folder / SPEC_FILE).is_file():
        raise InvalidInput(f"{folder} has no {SPEC_FILE}; name the output folder of a training on pairs")
    name, head = trained_head(folder), head_of_training(folder)
    spec = Spec.load(folder).of_head(name)
    tokenizer, special = load_tokenizer(str(folder))
    if (folder / ADAPTER_CONFIG).is_file():
        base, revision = base_of(folder)
        refuse_other_base(folder, read_run(folder).get("base_sha256"), base, revision)
        model = merge(load_with_adapter(base, folder, revision=revision, head=name))
    else:
        model = merge(load_with_adapter(str(folder), None, head=name))
    refuse_misfit(tokenizer, spec.max_tokens, model.config)
    encoder = Encoder(tokenizer, spec.template, special, spec.max_tokens, scores_alone=head.scores_alone)
    label_ids = encoder.label_ids if head.kind == "cloze" else None
    return Scorer(encoder, TorchEngine(model, special, label_ids, device, head=head), spec), model
