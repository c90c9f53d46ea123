"""A trained checkpoint, before export, computed by torch as `transformers` does."""

from pathlib import Path

from evaluation.target import Meter, MeteredEngine, Target, local_scorer
from tinyrm.encoding import Encoder
from tinyrm.engines.torch_checkpoint import TorchEngine
from tinyrm.errors import InvalidInput
from tinyrm.modernbert.adapter import load_with_adapter, merge
from tinyrm.modernbert.checkpoint import load_masked_lm, load_tokenizer, read_geometry, refuse_misfit
from tinyrm.modernbert.files import ADAPTER_CONFIG, base_of, refuse_other_base
from tinyrm.scorer import Scorer
from tinyrm.spec import SPEC_FILE, Spec, read_run, trained_head


def open_checkpoint(folder: Path, device: str | None = None) -> Target:
    """Open the output folder of a training: weights, or an adapter that names its base; tokenizer and cloze.json.

    device: None for a GPU if there is one.

    Probabilities are uncalibrated (temperature 1). Raises InvalidInput.
    """
    if not (folder / SPEC_FILE).is_file():
        raise InvalidInput(f"{folder} has no {SPEC_FILE}; name the output folder of a cloze training")
    if (head := trained_head(folder)) != "cloze":
        # Its adapter fits the masked LM too, which would compute without the head that it was trained with.
        raise InvalidInput(
            f"{folder} was trained with head: {head}; only cloze models are evaluated, exported and served"
        )
    spec = Spec.load(folder)
    tokenizer, special = load_tokenizer(str(folder))
    if (folder / ADAPTER_CONFIG).is_file():
        base, revision = base_of(folder)
        refuse_other_base(folder, read_run(folder).get("base_sha256"), base, revision)
        masked_lm = merge(load_with_adapter(base, folder, revision=revision))
    else:
        masked_lm = load_masked_lm(str(folder))
    refuse_misfit(tokenizer, spec.max_tokens, masked_lm.config)
    encoder = Encoder(tokenizer, spec.template, special, spec.max_tokens)
    meter = Meter()
    engine = TorchEngine(masked_lm, special, encoder.label_ids, device)
    metered = MeteredEngine(engine, read_geometry(masked_lm.config), masked_lm.num_parameters(), meter)
    return Target(folder.name, engine.info.name, spec, local_scorer(Scorer(encoder, metered, spec)), meter)
