"""What a cloze recipe would do, before it does it: pairs, steps, what learns, rates, cost. Needs no network."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from tinyrm.flops import Geometry, paper_flops
from tinyrm.modernbert.checkpoint import geometry_of
from training.data.mixture import load
from training.data.source import Source, published_pairs
from training.data.split import balanced_counts
from training.experiments.estimate import Learning, learning_parts
from training.experiments.published import empty_model, planned_config, published_models
from training.loading import find_recipe, load_recipe, recipe_names
from training.model.heads import empty_head
from training.recipe import AnyRecipe, ClozeRecipe
from training.stages.cloze import with_learning_parts
from training.trainer import warmup_then_linear

# Mean length of a pair of Skywork's, by the paper's author: an estimate for texts like those, no property of a recipe.
MEAN_TOKENS = 1553


@dataclass(frozen=True)
class Plan:
    """A recipe with what follows from it. domains: of each source, domain -> pairs, None where nobody knows before it
    is read.
    """

    recipe: ClozeRecipe
    domains: tuple[Mapping[str, int] | None, ...]
    geometry: Geometry
    parts: Learning

    @property
    def pairs(self) -> tuple[int | None, ...]:
        """Of each source."""
        return tuple(None if counts is None else sum(counts.values()) for counts in self.domains)

    @cached_property
    def learned_pairs(self) -> dict[str, int]:
        """Domain -> pairs to learn from, without those held out and those left out for balance; empty if unknown."""
        total: Counter[str] = Counter()
        for counts in self.domains:
            if counts is None:
                return {}
            total.update(counts)
        learn = {domain: round(n * (1 - self.recipe.held_out_fraction)) for domain, n in total.items()}
        return learn if self.recipe.balance == 1 else balanced_counts(learn, self.recipe.balance)

    @property
    def rows(self) -> int:
        """Sequences of one epoch."""
        return sum(self.learned_pairs.values()) * self.recipe.rows_per_pair

    @property
    def published_rows(self) -> int:
        """Sequences of one epoch with nothing held out and nothing left out for balance."""
        return sum(count or 0 for count in self.pairs) * self.recipe.rows_per_pair

    @property
    def steps(self) -> int | None:
        """Optimizer steps of the whole run, as the Trainer counts them; None if it takes the data to know."""
        optimization = self.recipe.optimization
        if optimization.max_steps > 0:
            return optimization.max_steps
        per_epoch = math.ceil(self.rows / optimization.batch_size)
        return math.ceil(per_epoch * optimization.epochs) or None

    @property
    def tokens(self) -> int:
        """Of a sequence, where the estimates need one."""
        return min(MEAN_TOKENS, self.max_tokens)

    @property
    def max_tokens(self) -> int:
        return self.recipe.train_max_tokens or self.recipe.spec.max_tokens

    def paper_gflop_per_token(self) -> float:
        return paper_flops(self.parts.parameters, self.geometry, 1) / 1e9

    def rates(self) -> dict[int, float]:
        """Step -> learning rate: the first, the end of warm-up, the quarters after it, the last."""
        if not self.steps:
            return {}
        warmup = round(self.steps * self.recipe.optimization.warmup_ratio)
        rest = self.steps - 1 - warmup
        at = sorted({0, warmup, *(warmup + round(rest * share) for share in (0.25, 0.5, 0.75)), self.steps - 1})
        return {step: self.rate(step) for step in at}

    def rate(self, step: int) -> float:
        """Learning rate of the step with this number, from 0. Raises ValueError where the steps are not known."""
        if not self.steps:
            raise ValueError("a rate is of a run whose steps are known")
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=self.recipe.optimization.peak_lr)
        (factor,) = warmup_then_linear(optimizer, self.recipe.optimization, self.steps).lr_lambdas  # type: ignore[attr-defined]
        return float(self.recipe.optimization.peak_lr * factor(step))


def plan(recipe: ClozeRecipe, data_dir: Path) -> Plan:
    """Raises InvalidInput if the model's sizes are not known, or if more layers are frozen than it has."""
    config = _config(recipe.model)
    empty = empty_model(config) if recipe.head == "cloze" else empty_head(recipe.head, config)
    model = with_learning_parts(empty, recipe)
    counts = tuple(_domains(source, data_dir) for source in recipe.sources)
    return Plan(recipe, counts, geometry_of(config), learning_parts(model))


def differences(
    one: Mapping[str, object], other: Mapping[str, object], prefix: str = ""
) -> dict[str, tuple[object, object]]:
    """Key path -> (value of one, value of the other) wherever two recipes say different things."""
    found: dict[str, tuple[object, object]] = {}
    for key in sorted(one.keys() | other.keys()):
        ours, theirs = one.get(key), other.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            found |= differences(ours, theirs, f"{prefix}{key}.")
        elif ours != theirs:
            found[f"{prefix}{key}"] = (ours, theirs)
    return found


def _config(model: str) -> PreTrainedConfig:
    """As published, as in the folder, or as the shipped recipe says that will write the folder."""
    if model in published_models() or (Path(model) / "config.json").is_file():
        return planned_config(model)
    made_from = getattr(_maker(model), "model", None)
    if isinstance(made_from, str):
        return _config(made_from)
    return planned_config(model)


def _maker(folder: str) -> AnyRecipe | None:
    recipes = (load_recipe(find_recipe(name)) for name in recipe_names())
    return next((recipe for recipe in recipes if recipe.output_dir == Path(folder)), None)


def _domains(source: Source, data_dir: Path) -> Mapping[str, int] | None:
    """Domain -> pairs, as published; of a file that is there, as it is."""
    if source.path and (data_dir / source.path).is_file():
        return Counter(pair.domain or "none" for pair in load(source, data_dir).pairs)
    published = published_pairs(source)
    return None if published is None else {source.domain or "as the records say": published}
