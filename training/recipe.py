"""The keys of a training recipe. One YAML file is one run; an unknown key is an error.

Data paths are relative to the data folder given on the command line, all others to the working directory, so a recipe
can move between machines. `load_recipe` in training/loading.py reads a file.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tinyrm.manifest import SetReading
from tinyrm.negatives import KINDS, WEIGHTS, Kind
from tinyrm.spec import HeadKind, Spec
from tinyrm.template import FIGURE2
from training.data.source import Source, Texts

Revision = Annotated[
    str | None, Field(description="Branch, tag or commit of `model`, if it is a hub id. The record names the commit.")
]
NewHead = Annotated[
    bool, Field(description="`model` may be a body alone; its head is drawn at random. Otherwise all weights must fit.")
]

Beta = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy takes


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Optimization(Section):
    """One optimizer for every stage: decoupled AdamW, linear warm-up, linear decay to a floor."""

    peak_lr: float = Field(gt=0, description="Learning rate at the end of the warm-up.", examples=["1.0e-4"])
    weight_decay: float = Field(
        default=1e-5, ge=0, description="Fraction a weight loses per step at the peak learning rate."
    )
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    eps: float = Field(default=1e-6, ge=0)
    warmup_ratio: float = Field(default=0.06, ge=0, lt=1)
    floor_ratio: float = Field(default=0.02, ge=0, le=1, description="Last learning rate as a share of the peak.")
    max_grad_norm: float = Field(default=1.0, ge=0)
    epochs: float = Field(default=1.0, gt=0, le=1e6)
    max_steps: int = Field(default=-1, ge=-1, description="Stop here instead of after `epochs`; -1: no such limit.")
    batch_size: int = Field(default=256, gt=0, description="Sequences per optimizer step, over all devices.")
    micro_batch_size: int = Field(default=32, gt=0, description="Sequences per forward pass on one device.")
    precision: Literal["fp32", "bf16"] = "bf16"
    compile: bool = Field(default=False, description="torch.compile; pays off at a constant length.")
    save_steps: int = Field(default=200, gt=0)
    eval_steps: int = Field(default=200, gt=0)
    average: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(),
        description="Steps whose checkpoints are averaged (arXiv 2209.14981): the run ends at the last of them, on the "
        "schedule of `epochs`, and writes their mean. None: the last step's weights.",
    )
    seed: Seed = 17

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size={self.micro_batch_size} must divide batch_size={self.batch_size}")
        return self

    @model_validator(mode="after")
    def _some_steps(self) -> Self:
        if self.max_steps == 0:
            raise ValueError("max_steps=0 would be no limit, as -1 is; name at least one step")
        return self

    @model_validator(mode="after")
    def _averaged_steps_are_saved(self) -> Self:
        if unsaved := [step for step in self.average if step % self.save_steps]:
            raise ValueError(f"average: no checkpoint is saved at step {unsaved[0]}; save_steps is {self.save_steps}")
        return self


def fields_of_trainer(values: dict[str, Any]) -> dict[str, Any]:
    """Return them as the installed class has them. Raises ValueError."""
    if not values:
        return values
    from training.trainer_fields import checked  # noqa: PLC0415 - imports transformers, which takes time

    return checked(values)


class LearningRecipe(Section):
    """What all recipes share that train a model."""

    output_dir: Path = Field(description="Folder that the run writes.", examples=["runs/mine"])
    attention: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"] | None = Field(
        default=None,
        description="Implementation of attention; None: the library's choice, sdpa for most. The two last need a GPU, "
        "and flash_attention_2 its package and precision: bf16.",
    )
    optimization: Optimization = Field(
        description="Learning rate, batches and epochs.",
        examples=["{peak_lr: 1.0e-4, batch_size: 64, micro_batch_size: 16}"],
    )
    trainer: Annotated[dict[str, Any], AfterValidator(fields_of_trainer)] = Field(
        default={},
        description="Any other field of Transformers' TrainingArguments, such as {report_to: tensorboard, "
        "activation_checkpointing: true, dataloader_num_workers: 4}. A field that a key of ours sets is an error.",
    )
    early_stopping_patience: int | None = Field(
        default=None,
        gt=0,
        description="End the run after so many evaluations without a better `trainer.metric_for_best_model` (loss if "
        "there is none), and keep the best checkpoint.",
    )

    @model_validator(mode="after")
    def _flash_has_its_precision(self) -> Self:
        if self.attention == "flash_attention_2" and self.optimization.precision != "bf16":
            raise ValueError("attention: flash_attention_2 computes in bf16; set optimization.precision: bf16")
        return self

    @model_validator(mode="after")
    def _averaged_checkpoints_remain(self) -> Self:
        others = {"load_best_model_at_end", "save_strategy", "save_total_limit"} & self.trainer.keys()
        if self.early_stopping_patience:
            others.add("early_stopping_patience")
        if self.optimization.average and others:
            raise ValueError(f"average needs its own checkpoints, up to its last; remove {', '.join(sorted(others))}")
        return self


class TokenizerRecipe(Section):
    """Train a byte-level BPE vocabulary."""

    task: Literal["tokenizer"]
    output_dir: Path
    vocab_size: int = Field(gt=300)
    texts: tuple[Texts, ...]
    seed: Seed = 17


class NewModel(Section):
    """Geometry of a new ModernBERT; every third layer is global, as in the published sizes."""

    num_hidden_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    max_position_embeddings: int = 8192


class PretrainRecipe(LearningRecipe):
    """Masked-LM pre-training of a small base."""

    task: Literal["pretrain"]
    tokenizer: str
    model: NewModel | str = Field(description="A geometry for a new model, or a folder or hub id to continue.")
    revision: Revision = None
    new_head: NewHead = False
    texts: tuple[Texts, ...]
    block_tokens: int = Field(default=512, gt=8)
    mask_rate: float = Field(default=0.3, gt=0, lt=1)


class Dora(Section):
    """DoRA on the linears of every layer that is not frozen, and on the head's dense layer."""

    rank: int = Field(default=128, gt=0)
    alpha: int = Field(default=128, gt=0, description="Scale is alpha / rank.")
    dropout: float = 0.0
    magnitude: bool = Field(default=True, description="Without it this is plain LoRA.")


class Negatives(Section):
    """Made-up bad responses beside the data's own: `tinyrm.negatives`."""

    share: float = Field(gt=0, lt=1, description="Share of the pairs shown whose rejected response is made up.")
    kinds: dict[Kind, Annotated[float, Field(ge=0)]] = Field(
        default=dict(WEIGHTS),
        description="Kind -> how often it is drawn, relative to the others that apply to a pair. A kind that is not "
        "listed is not made.",
    )

    @model_validator(mode="after")
    def _some_kind(self) -> Self:
        if not any(self.kinds.values()):
            raise ValueError(f"no kind of negatives has a weight above 0; kinds: {', '.join(KINDS)}")
        return self

    def beside(self, pairs: int) -> int:
        """Return how many made-up pairs stand beside this many of the data, so that they have their share."""
        return round(pairs * self.share / (1 - self.share))


class ClozeRecipe(LearningRecipe):
    """The reward objective: cross-entropy at the mask of a text that shows both responses."""

    task: Literal["cloze"]
    model: str = Field(
        description="Folder or hub id of a masked LM of the ModernBERT family, or of a BERT.",
        examples=["answerdotai/ModernBERT-base"],
    )
    revision: Revision = None
    new_head: NewHead = False
    spec: Spec = Field(
        description="What the model reads: token budget and instructions.", examples=["{max_tokens: 2048}"]
    )
    sources: tuple[Source, ...] = Field(
        min_length=1,
        description="Where the pairs come from, and their domains.",
        examples=["[{dataset: file, path: pairs.jsonl}]"],
    )
    balance: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="The share of a domain is proportional to (its pairs)^balance, by leaving pairs out: 1 takes all, "
        "0 as many of each domain as the smallest has.",
    )
    negatives: Negatives | None = Field(
        default=None,
        description="Made-up bad responses to add to the pairs that are learned from, never to those held out.",
    )
    orders: Literal["both", "coin"] = Field(
        default="both", description="Each pair once in each order, or once in an order by a seeded coin."
    )
    coin_pairs: int = Field(
        default=1, gt=0, description="Number of neighbouring pairs that share one throw of the coin."
    )
    prefixes: dict[str, tuple[str, ...]] = Field(
        default={},
        description="Domain -> instructions to draw from for each of its pairs in training, by seed. A domain that is "
        "not listed has the spec's instruction.",
    )
    train_max_tokens: int | None = Field(
        default=None, description="Token budget in training, if it is smaller than the spec's."
    )
    held_out_fraction: float = Field(
        default=0.02,
        gt=0,
        lt=0.5,
        description="Share of prompts kept for validation and calibration, never trained on.",
    )
    default_instruction_rate: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of pairs shown with the default domain's instruction instead of their own.",
    )
    head: HeadKind = Field(default="cloze", description="How the preference is read.")
    sets: SetReading | None = Field(
        default=None, description="For head: set: what responses see of each other; other heads have none."
    )
    max_responses: int = Field(
        default=2,
        ge=2,
        description="For head: set: largest number of responses to one prompt that are learnt from together. 2 takes "
        "the pairs as they are; more joins the pairs of a prompt into groups.",
    )
    distractors: int = Field(
        default=0,
        ge=0,
        description="For head: set: worse responses that are added to each group: off-topic ones, damaged ones, and "
        "others to the same prompt.",
    )
    loss: Literal["vocabulary", "labels"] = Field(
        default="vocabulary",
        description="For the cloze: cross-entropy over the whole vocabulary (paper), or over the two labels.",
    )
    consistency_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight in the loss of (z(A,B) + z(B,A))^2, which is 0 for a consistent model.",
    )
    frozen_layers: int = Field(default=0, ge=0, description="Number of lowest layers that do not learn.")
    freeze_embeddings: bool = Field(default=True, description="Freeze the embeddings together with the frozen layers.")
    dora: Dora | None = None
    attention_dropout: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Dropout of attention weights in training; None: the base's own. BERT's is 0.1, which no fused "
        "kernel of the CPU has: 0 trains 1.7 times as fast there.",
    )
    padding_free: bool | None = Field(
        default=None,
        description="Whether the sequences of a batch stand one behind the other, without padding. None: with "
        "attention: flash_attention_2, which gains by it.",
    )
    notes: tuple[str, ...] = Field(default=(), description="What a reader must know; a dry run prints it.")

    @property
    def is_flat(self) -> bool:
        """Whether batches have no padding."""
        if self.padding_free is None:
            return self.attention == "flash_attention_2"
        return self.padding_free

    @property
    def training_tokens(self) -> int:
        """Largest number of tokens of a sequence in training; serving has that of the spec."""
        return self.train_max_tokens or self.spec.max_tokens

    @property
    def rows_per_pair(self) -> int:
        """Sequences per pair in training."""
        return 2 if self.orders == "both" and self.head != "set" else 1

    @model_validator(mode="after")
    def _both_orders_fit(self) -> Self:
        if self.orders == "both" and self.optimization.micro_batch_size % 2:
            raise ValueError("micro_batch_size must be even: both orders of a pair are in one batch")
        if self.train_max_tokens and self.train_max_tokens > self.spec.max_tokens:
            raise ValueError(f"train_max_tokens={self.train_max_tokens} is above the spec's {self.spec.max_tokens}")
        return self

    @model_validator(mode="after")
    def _orders_suit_the_head(self) -> Self:
        if (self.head == "set") != (self.sets is not None):
            raise ValueError("head: set needs `sets`, such as {others: none}, and no other head has it")
        if self.sets and (self.attention or self.padding_free):
            raise ValueError("head: set has attention of its own, over padded batches; remove attention, padding_free")
        if (self.max_responses > 2 or self.distractors) and self.head != "set":
            raise ValueError(f"head: {self.head} learns from pairs; remove max_responses and distractors")
        one_by_one = self.head in ("pointwise", "set", "tokens")
        if one_by_one and self.orders != "both":
            raise ValueError(f"head: {self.head} gives each response a score and has no order; remove `orders`")
        if one_by_one and self.consistency_weight:
            raise ValueError(
                f"head: {self.head} gives each response a score and is consistent; remove consistency_weight"
            )
        if self.consistency_weight and self.orders != "both":
            raise ValueError("consistency_weight compares both orders of a pair and needs orders: both")
        return self

    @model_validator(mode="after")
    def _prefixes_have_a_domain(self) -> Self:
        for domain, pool in self.prefixes.items():
            if domain not in self.spec.domains:
                raise ValueError(
                    f"prefixes of {domain!r}, which is not a domain of the spec: {sorted(self.spec.domains)}"
                )
            if not pool:
                raise ValueError(f"no prefixes for {domain!r}; remove it to use the spec's instruction")
        return self


class SftRecipe(LearningRecipe):
    """Masked-LM fine-tuning on the assistant's turns of conversations, before the reward stage.

    The objective `copy` is what the paper's author coded: nothing is hidden, and the labels are the ids that the model
    sees. It is an ablation: the model only needs to repeat its input.
    """

    task: Literal["sft"]
    model: str = Field(description="Folder or hub id of a masked LM.")
    revision: Revision = None
    new_head: NewHead = False
    conversations: tuple[str, ...] = Field(min_length=1, description='JSONL of {"messages": [{"role", "content"}]}.')
    turn_names: dict[str, str] = Field(default=dict(FIGURE2.turn_names), description="As in the reward template.")
    max_tokens: int = Field(default=512, gt=8, description="Longer conversations lose their beginning.")
    objective: Literal["masked", "copy"] = "masked"
    mask_rate: float = Field(default=0.3, gt=0, lt=1, description="Share of the assistant's tokens to predict.")
    mask_replace_rate: float = Field(default=0.8, ge=0, le=1, description="Of those, the share that becomes [MASK].")
    random_replace_rate: float = Field(
        default=0.1, ge=0, le=1, description="The share that becomes a random token; the rest is kept."
    )
    held_out_fraction: float = Field(default=0.02, gt=0, lt=0.5)
    frozen_layers: int = Field(default=0, ge=0)

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
    """A trained model: a folder with weights, or one with an adapter, whose base is named in the adapter or here."""

    path: str = Field(description="Folder, or hub id of full weights.")
    base: str | None = Field(
        default=None, description="Base of an adapter, if it is not the one that the adapter names."
    )


class Merged(Specialist):
    coefficient: float | None = Field(
        default=None,
        description="Weight of this model. Default: equal shares in mean and ties, 1 in the sums of the others.",
    )


class MergeRecipe(Section):
    """Merge specialists with one ancestor into one model, in weight space, without training.

    mean: the weighted mean. task_arithmetic (arXiv 2212.04089), ties (2306.01708) and dare (2311.03099) add up the
    specialists' differences from `base`.
    """

    task: Literal["merge"]
    output_dir: Path
    method: Literal["mean", "task_arithmetic", "ties", "dare"]
    specialists: tuple[Merged, ...] = Field(min_length=2)
    base: str | None = Field(default=None, description="Model that all specialists were trained from. Not for `mean`.")
    scale: float = Field(
        default=1.0,
        gt=0,
        description="Factor on what is added to the base, lambda in all three papers. task_arithmetic and dare "
        "are sums of differences and need it: 1 adds all of each, 1 / number of specialists is the mean.",
    )
    density: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="ties: share of each difference that is kept, the largest values. dare: 1 - drop rate.",
    )
    default_domain: str | None = Field(default=None, description="Default: the first specialist's.")
    seed: int = Field(default=17, description="Seed of the values that DARE drops.")

    @model_validator(mode="after")
    def _base_where_needed(self) -> Self:
        if (self.method == "mean") == (self.base is not None):
            raise ValueError(f"method {self.method!r} takes {'no base' if self.base else 'a base'}")
        if self.method == "mean" and self.scale != 1:
            raise ValueError("a mean has no scale")
        if self.method in ("task_arithmetic", "dare") and "scale" not in self.model_fields_set:
            raise ValueError(f"{self.method} adds up differences: set `scale`, tuned on held-out pairs")
        return self

    def coefficients(self) -> list[float]:
        """Return one coefficient for each specialist, in order."""
        share = 1 / len(self.specialists) if self.method in ("mean", "ties") else 1.0
        return [share if s.coefficient is None else s.coefficient for s in self.specialists]


class Teacher(Specialist):
    path: str = Field(
        description="A trained model as `Specialist` has it, the folder of a bundle, or a file of targets: pairs in "
        "any format, each with the `probability` that chosen is better or the `margin`, its log-odds."
    )


def each_or_one(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


Teachers = Annotated[tuple[Teacher, ...], Field(min_length=1)]


class DistilRecipe(ClozeRecipe):
    """Distil teachers into one student, which learns each pair's probability from the teachers of its domain.

    Several teachers of one domain count equally: their calibrated margins are averaged. The student may have another
    head than they: `head: pointwise` learns to read responses one by one from teachers that compare them.

    The loss is cross-entropy with that probability (`training.model.losses.soft_cross_entropy`): for the cloze over
    the whole vocabulary or over the two labels, as `loss` says, for a head over its two choices. Minus the teachers'
    entropy, which is constant, it is the KL divergence (arXiv 1503.02531).
    """

    task: Literal["distil"]  # type: ignore[assignment]
    teachers: Teachers | dict[str, Annotated[Teachers, BeforeValidator(each_or_one)]] = Field(
        min_length=1, description="Of every pair; or domain -> its teacher, or its teachers."
    )
    targets: Path | None = Field(
        default=None,
        description="Folder that keeps what teachers gave, so that several runs score each pair once; "
        "by default the folder `targets` of output_dir.",
    )
    teacher_temperature: float = Field(default=1.0, gt=0, description="Divides the teachers' margins; above 1 softens.")
    hard_rate: float = Field(
        default=0.0, ge=0, le=1, description="Weight of the pair's own verdict beside the teachers'."
    )

    def teachers_of(self, domain: str) -> tuple[Teacher, ...]:
        """Return the teachers of a domain's pairs; none if the recipe names none."""
        return self.teachers.get(domain, ()) if isinstance(self.teachers, dict) else self.teachers

    def all_teachers(self) -> tuple[Teacher, ...]:
        """Return each teacher once."""
        groups = self.teachers.values() if isinstance(self.teachers, dict) else [self.teachers]
        return tuple(dict.fromkeys(teacher for group in groups for teacher in group))

    @property
    def targets_folder(self) -> Path:
        return self.targets or self.output_dir / "targets"

    @model_validator(mode="after")
    def _the_loss_is_the_teachers(self) -> Self:
        if self.orders != "both":
            raise ValueError("a teacher's probability is of both orders; remove `orders`")
        if self.head == "set":
            raise ValueError("head: set does not learn from teachers yet; use head: pointwise")
        if self.head == "tokens":
            raise ValueError("head: tokens labels single responses, and a teacher compares two; use head: pointwise")
        if self.consistency_weight:
            raise ValueError("a student has the teachers' loss; remove consistency_weight")
        return self


AnyRecipe = TokenizerRecipe | PretrainRecipe | ClozeRecipe | SftRecipe | DistilRecipe | MergeRecipe
Recipe = Annotated[AnyRecipe, Field(discriminator="task")]
