"""Merging in a grid: the specialists of a seed become one model, measured on all that they held out."""

from pathlib import Path

import numpy as np
from transformers import EvalPrediction

from tinyrm.encoding import Encoder
from tinyrm.engines.torch_checkpoint import TorchEngine
from tinyrm.errors import InvalidInput
from tinyrm.modernbert.checkpoint import load_masked_lm, load_tokenizer
from tinyrm.pairs import PreferencePair, read_pairs
from tinyrm.scorer import Scorer
from tinyrm.spec import HELD_OUT_FILE, ClozeSpec, read_run
from training.output import write_run
from training.recipe import MergeRecipe
from training.stages.cloze import preference_metrics
from training.stages.merge import merge_specialists


def of_seed(recipe: MergeRecipe, out: Path, name: str, seed: int) -> MergeRecipe:
    """The recipe with this seed's specialists: those that the grid wrote to OUT/NAME, by the names of their folders."""
    specialists = tuple(
        each.model_copy(update={"path": str(out / Path(each.path).name / f"seed-{seed}")})
        for each in recipe.specialists
    )
    folder = out / name / f"seed-{seed}"
    return recipe.model_copy(update={"specialists": specialists, "output_dir": folder, "seed": seed})


def merge_and_measure(recipe: MergeRecipe) -> None:
    """Merge, and add to the record what training writes of a run of its own. Raises InvalidInput."""
    merge_specialists(recipe)
    held_out = recipe.output_dir / HELD_OUT_FILE
    if not held_out.is_file():
        raise InvalidInput(
            "the specialists did not hold out pairs by one seed and share, so there are none to measure on"
        )
    metrics = measured(recipe.output_dir, read_pairs(held_out))
    named = {f"eval_{name}": value for name, value in metrics.items()}
    write_run(recipe.output_dir, read_run(recipe.output_dir) | {"held_out": named})


def measured(folder: Path, pairs: list[PreferencePair]) -> dict[str, float]:
    """What training measures of a cloze checkpoint, but for the loss."""
    spec = ClozeSpec.load(folder)
    tokenizer, special = load_tokenizer(str(folder))
    encoder = Encoder(tokenizer, spec.template, special, spec.max_tokens)
    engine = TorchEngine(load_masked_lm(str(folder)), special, encoder.label_ids)
    instructions = [spec.instruction(pair.domain, or_default=True) for pair in pairs]
    answers = Scorer(encoder, engine, spec).score([pair.comparison() for pair in pairs], instructions)
    margins = np.array([answer.order_margins for answer in answers])
    # A margin is towards the chosen response; training counts towards the one that stands first.
    return preference_metrics(EvalPrediction(margins * [1, -1], np.zeros(len(pairs))))
