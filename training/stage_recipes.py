"""What the recipes of the stages around the reward stage may say: SFT before it, merging and distillation after it."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from tinyrm.template import FIGURE2
from training.config import ClozeRecipe, Optimization, Section


class SftRecipe(Section):
    """Masked-LM fine-tuning on the assistant's turns of conversations, before the reward stage.

    The objective `copy` is what the paper's author coded: nothing is hidden, and the labels are the ids that the model
    sees. It is here as an ablation: repeating is all that it asks for.
    """

    task: Literal["sft"]
    output_dir: Path
    model: str = Field(description="Folder or hub id of a masked LM.")
    conversations: tuple[str, ...] = Field(min_length=1, description='JSONL of {"messages": [{"role", "content"}]}.')
    turn_names: dict[str, str] = Field(default=dict(FIGURE2.turn_names), description="As the reward template has them.")
    max_tokens: int = Field(default=512, gt=8, description="Longer conversations lose their beginning.")
    objective: Literal["masked", "copy"] = "masked"
    mask_rate: float = Field(default=0.3, gt=0, lt=1, description="Share of the assistant's tokens to predict.")
    mask_replace_rate: float = Field(default=0.8, ge=0, le=1, description="Of those, the share that becomes [MASK].")
    random_replace_rate: float = Field(default=0.1, ge=0, le=1, description="And a random token; the rest is kept.")
    held_out_fraction: float = Field(default=0.02, gt=0, lt=0.5)
    frozen_layers: int = Field(default=0, ge=0)
    optimization: Optimization

    @model_validator(mode="after")
    def _shares_and_names(self) -> Self:
        if missing := {"system", "user", "assistant"} - self.turn_names.keys():
            raise ValueError(f"turn_names lacks {', '.join(sorted(missing))}")
        if self.mask_replace_rate + self.random_replace_rate > 1:
            raise ValueError(
                "mask_replace_rate and random_replace_rate are shares of the same tokens: at most 1 together"
            )
        return self


class Specialist(Section):
    """A trained model: a folder with weights, or one with an adapter, whose base is then named in it or here."""

    path: str = Field(description="Folder, or hub id of full weights.")
    base: str | None = Field(default=None, description="Of an adapter, where not the base that it names itself.")


class Merged(Specialist):
    coefficient: float | None = Field(
        default=None,
        description="How much of it. Left out: equal shares in mean and ties, all of it in the sums of the others.",
    )


class MergeRecipe(Section):
    """Specialists with one ancestor -> one model, in weight space, without training.

    mean: the weighted mean. task_arithmetic (arXiv 2212.04089), ties (2306.01708) and dare (2311.03099) add up the
    specialists' differences from `base`.
    """

    task: Literal["merge"]
    output_dir: Path
    method: Literal["mean", "task_arithmetic", "ties", "dare"]
    specialists: tuple[Merged, ...] = Field(min_length=2)
    base: str | None = Field(default=None, description="What all specialists were trained from. Not for `mean`.")
    scale: float = Field(
        default=1.0,
        gt=0,
        description="Factor on what is added to the base, lambda of all three papers. Sums of differences, "
        "task_arithmetic and dare, need it said: 1 adds all of each, 1 / number of specialists is the mean.",
    )
    density: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="ties: share of each difference that is kept, the largest. dare: 1 - drop rate.",
    )
    default_domain: str | None = Field(default=None, description="The first specialist's if left out.")
    seed: int = Field(default=17, description="Which values DARE drops.")

    @model_validator(mode="after")
    def _base_where_needed(self) -> Self:
        if (self.method == "mean") == (self.base is not None):
            raise ValueError(f"method {self.method!r} takes {'no base' if self.base else 'a base'}")
        if self.method == "mean" and self.scale != 1:
            raise ValueError("a mean has no scale")
        if self.method in ("task_arithmetic", "dare") and "scale" not in self.model_fields_set:
            raise ValueError(f"{self.method} adds up differences: say `scale`, to be tuned on held-out pairs")
        return self

    def coefficients(self) -> list[float]:
        """One for each specialist, in order."""
        share = 1 / len(self.specialists) if self.method in ("mean", "ties") else 1.0
        return [share if s.coefficient is None else s.coefficient for s in self.specialists]


class DistilRecipe(ClozeRecipe):
    """Specialists -> one student, which learns each pair's probability from the specialist of the pair's domain.

    `loss` is cross-entropy on that probability: over the whole vocabulary, or over the two labels. Less the teacher's
    entropy, which no student can change, it is the KL divergence (arXiv 1503.02531).
    """

    task: Literal["distil"]  # type: ignore[assignment]
    teachers: dict[str, Specialist] = Field(min_length=1, description="Domain -> its specialist.")
    teacher_temperature: float = Field(default=1.0, gt=0, description="Divides the teachers' margins: above 1 softens.")
    hard_rate: float = Field(
        default=0.0, ge=0, le=1, description="Weight of the pair's own verdict beside the teacher's."
    )

    @model_validator(mode="after")
    def _both_orders_are_asked(self) -> Self:
        if self.orders != "both":
            raise ValueError("a teacher answers for both orders; drop `orders`")
        if self.head != "cloze" or self.consistency_weight:
            raise ValueError("a student is a cloze model and has the teacher's loss; drop head and consistency_weight")
        return self
