"""What a sweep tries: ranges and pools, and a recipe with one choice of each."""

from pathlib import Path
from typing import Self

import optuna
from pydantic import Field, model_validator

from training.loading import read_recipe
from training.recipe import ClozeRecipe, Section


class Space(Section):
    """Ranges include both ends. What is left out stays as the recipe has it."""

    peak_lr: tuple[float, float] = Field(default=(1e-6, 5e-4), description="Log-uniform; the paper's was uniform.")
    dora_ranks: tuple[int, ...] = Field(
        default=(), description="With the recipe's alpha / rank, so that the rank is all that changes."
    )
    frozen_layers: tuple[int, int] | None = None
    instructions: dict[str, tuple[str, ...]] = Field(default={}, description="Domain -> the prefixes to choose from.")

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        if not 0 < self.peak_lr[0] <= self.peak_lr[1]:
            raise ValueError(f"peak_lr {self.peak_lr} is not a range above 0")
        if self.frozen_layers and not 0 <= self.frozen_layers[0] <= self.frozen_layers[1]:
            raise ValueError(f"frozen_layers {self.frozen_layers} is not a range from 0 up")
        if empty := [domain for domain, pool in self.instructions.items() if not pool]:
            raise ValueError(f"no instruction to choose from for {', '.join(empty)}")
        return self

    @model_validator(mode="after")
    def _ranks_are_positive(self) -> Self:
        if any(rank < 1 for rank in self.dora_ranks):
            raise ValueError("dora_ranks are at least 1")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises InvalidInput for a file that is no YAML, pydantic.ValidationError naming each wrong key."""
        return cls.model_validate(read_recipe(path))

    def misfits(self, recipe: ClozeRecipe, layers: int) -> list[str]:
        """Why no trial of this space could run on the recipe and its model; empty where all can."""
        found = []
        if self.dora_ranks and not recipe.dora:
            found.append("dora_ranks are given, and the recipe has no dora")
        if self.frozen_layers and self.frozen_layers[1] >= layers:
            found.append(f"frozen_layers up to {self.frozen_layers[1]} leave nothing to learn in {layers} layers")
        if unknown := sorted(self.instructions.keys() - recipe.spec.domains.keys()):
            found.append(f"instructions for {', '.join(unknown)}, which the recipe's spec does not have")
        if drawn := sorted(self.instructions.keys() & recipe.prefixes.keys()):
            found.append(f"instructions for {', '.join(drawn)}, which the recipe draws from its own `prefixes`")
        return found

    def choose(self, trial: optuna.trial.BaseTrial, recipe: ClozeRecipe) -> ClozeRecipe:
        """The recipe with the trial's choices, each validated as if it stood in the file."""
        changed = recipe.model_dump(mode="json")
        changed["optimization"]["peak_lr"] = trial.suggest_float("peak_lr", *self.peak_lr, log=True)
        if self.frozen_layers:
            changed["frozen_layers"] = trial.suggest_int("frozen_layers", *self.frozen_layers)
        if self.dora_ranks and recipe.dora:
            rank = trial.suggest_categorical("dora_rank", self.dora_ranks)
            alpha = max(1, round(recipe.dora.alpha * rank / recipe.dora.rank))
            changed["dora"] |= {"rank": rank, "alpha": alpha}
        for domain, pool in self.instructions.items():
            changed["spec"]["domains"][domain] = trial.suggest_categorical(f"instruction.{domain}", pool)
        return type(recipe).model_validate(changed)
