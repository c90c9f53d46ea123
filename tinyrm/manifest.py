"""The manifest of a bundle: everything a later stage needs to know about the model."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from tinyrm.confidence import Temperature, Temperatures
from tinyrm.encoding import Encoding, SpecialTokens
from tinyrm.errors import InvalidInput
from tinyrm.flops import Geometry, GraphKind, Others
from tinyrm.spec import Spec, read_run

if TYPE_CHECKING:  # it needs scipy, which serving does not have
    from tinyrm.calibration import TemperatureFit

SCHEMA_VERSION: Final = 3
# Older versions that still open.
READABLE: Final = (2, 3)
MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
CARD_FILE = "README.md"

# A bare file name: nothing that could point outside the bundle.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]
BUNDLE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
LATER = ("auto_swap", "calibration", "stored", "temperature_one_order")
LATER_PROVENANCE = ("base_commit", "base_sha256", "adapter_sha256", "training", "data_revisions")
# Tokens whose hidden states are read; segments: several, at the start of each text of a sequence.
ReadAt = Literal["mask", "first", "mean", "last", "segments"]
LATER_GATE = ("weighted_flips", "max_weighted_flips", "share_rounded", "kept_fp32")
LATER_GEOMETRY = ("distances", "embedding", "reads_mean")
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Parity(Frozen):
    """One passed check: the largest difference of logits between two ways to compute them."""

    check: str
    max_difference: float
    tolerance: float


class Gate(Frozen):
    """What a lower precision changes on calibration pairs in both orders; only passed gates are written.

    `weighted_flips` decides: who prefers either response of a near tie loses nothing by the other one.
    """

    pairs: int
    flips: float = Field(description="Share of pairs whose preferred response changed.")
    max_flips: float | None = Field(description="The share allowed; None: reported only.")
    weighted_flips: float | None = Field(
        default=None,
        description="The same with each pair weighted by the size of its margin in fp32: sum of |margin| of the pairs "
        "that changed / sum of |margin| of all. None in bundles that were written before this field.",
    )
    max_weighted_flips: float | None = Field(default=None, description="The weighted share allowed.")
    mean_probability_shift: float = Field(description="Mean of |p - p_fp32| at the bundle's temperature.")
    max_probability_shift: float
    temperature: float = Field(description="The temperature that would fit this precision best.")
    alone_and_in_a_batch: float = Field(description="Largest difference of a logit that batch-mates made.")
    share_rounded: float | None = Field(
        default=None, description="Of int8: the share of the products' multiplications that run in 8 bits."
    )
    kept_fp32: tuple[str, ...] = Field(
        default=(), description="Of int8: products that stay in fp32, the most harmful first."
    )

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write the gates of older bundles as they were written then: their hash must not change."""
        return {
            name: value
            for name, value in handler(self).items()
            if name not in LATER_GATE or value not in (None, (), [])
        }


class StoredWeights(Frozen):
    """Weights that are rounded in the files and widened to fp32 at load; every other figure is of the rounded ones."""

    dtype: Literal["fp16", "mixed", "int8"] = Field(
        description="int8: with a scale for each block of a row. mixed: tables in int8, matrices in fp16."
    )
    gate: Gate = Field(description="What rounding changed, against the weights in fp32.")


class AutoSwap(Frozen):
    """When one order is enough, measured on calibration pairs with either response first."""

    margin: float = Field(
        ge=0,
        description="Log-odds of the first order, at the manifest's `temperature`, from which on the second order is "
        "not scored.",
    )
    pairs: int
    saved: float = Field(description="Share of second orders that were not needed.")
    flips: float = Field(description="Share of pairs whose preferred response another order would have changed.")
    max_flips: float = Field(description="The share allowed.")


class Calibration(Frozen):
    """The pairs that calibrated the bundle. What was chosen on them is better on them than on other pairs."""

    pairs: int
    wrong: int = Field(description="Of them, those that the model judges wrongly.")
    held_out: bool = Field(description="Whether training held them out, so that it did not learn from them.")
    chosen: tuple[str, ...] = Field(
        description="What was chosen on them: temperature, auto_swap, score_scale, precisions, stored weights."
    )
    log_temperature_std: float | None = Field(
        description="Standard error of the temperature's logarithm; None if the pairs determine none and it is 1."
    )
    temperature_one_order: float | None = Field(
        description="The temperature that fits one order best; None if a model has no orders."
    )
    pairs_sha256: Sha256 | None = Field(default=None, description="Hash of the file that holds the pairs.")


class DomainTemperature(Frozen):
    """The temperature of a domain: its own, or one shared by the domains that are left when some have their own."""

    temperature: float = Field(gt=0)
    log_temperature_std: float = Field(gt=0, description="Standard error of its logarithm.")
    temperature_one_order: float | None = Field(
        description="As in `calibration`. It divides margins only if the manifest has one for the other domains."
    )
    pairs: int = Field(description="That it was fitted on, of this domain or of all that share it.")
    wrong: int = Field(description="Of the pairs, those that the model judges wrongly.")

    @classmethod
    def of(cls, fit: "TemperatureFit") -> Self:
        return cls(
            temperature=fit.temperature,
            log_temperature_std=fit.log_std,
            temperature_one_order=fit.one_order,
            pairs=fit.pairs,
            wrong=fit.wrong,
        )


class SetReading(Frozen):
    """What the responses of a set see of each other. Each sees the prompt and itself; the prompt sees itself only."""

    others: Others = Field(
        description="none: nothing, so that a score is that of the response alone. masks: each other's mask (as the "
        "interaction tokens of Set-Encoder, arXiv 2404.06912). tokens: all of each other."
    )
    layers: int | None = Field(
        default=None, ge=1, description="The number of upper global layers in which they do; None for all."
    )
    read_at: Literal["mask", "mean"] = Field(
        default="mask",
        description="Where a response is read: at its mask, as suits a masked LM, or the mean of its tokens, as suits "
        "a base that was made for embeddings.",
    )

    @property
    def scores_alone(self) -> bool:
        """Whether a score does not depend on the other responses."""
        return self.others == "none"


class Head(Frozen):
    """What a model reads at the end, and where. A graph's `logits` have `outputs` columns."""

    kind: Literal["cloze", "pair", "score"] = Field(
        description="cloze: logits of two label words. pair: logits of the first and the second choice. score: one "
        "logit of one response."
    )
    read_at: ReadAt = Field(description="Tokens whose hidden states are read; segments: one at the start of each text.")
    outputs: int = Field(ge=1, le=2)
    activation: Literal["identity", "sigmoid"] = Field(
        default="identity", description="What the model's own library applies to its logit; margins are without it."
    )
    sets: SetReading | None = Field(default=None, description="Of a model that reads sets; None for any other.")

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write the heads of older bundles as they were written then: their hash must not change."""
        return {name: value for name, value in handler(self).items() if name != "sets" or value is not None}

    @property
    def scores_alone(self) -> bool:
        """Whether it gives a response a score that does not depend on other responses."""
        return self.kind == "score" and (self.sets is None or self.sets.scores_alone)

    def activate(self, logit: float) -> float:
        """Return what the model's own library returns for a logit."""
        if self.activation == "identity":
            return logit
        small = math.exp(-abs(logit))
        return (small if logit < 0 else 1.0) / (1 + small)


CLOZE_HEAD = Head(kind="cloze", read_at="mask", outputs=2)


# Those of training that can be exported, by their names in recipes.
TRAINED_HEADS: Final[Mapping[str, Head]] = {
    "cloze": CLOZE_HEAD,
    "pair-cls": Head(kind="pair", read_at="first", outputs=2),
    "pair-mean": Head(kind="pair", read_at="mean", outputs=2),
    "pointwise": Head(kind="score", read_at="first", outputs=1),
    # The recipe states what its responses see of each other.
    "set": Head(kind="score", read_at="mask", outputs=1),
}


def head_of_training(folder: Path, run: Mapping[str, Any] | None = None) -> Head:
    """Return where the model reads that a training wrote into `folder`, with this record of its run.

    run: None for the record in the folder.

    Raises InvalidInput for a head that is not served.
    """
    recipe = (read_run(folder) if run is None else run).get("recipe", {})
    name = recipe.get("head", "cloze")
    if name not in TRAINED_HEADS:
        raise InvalidInput(f"{folder} was trained with head: {name}; {', '.join(TRAINED_HEADS)} are read")
    head = TRAINED_HEADS[name]
    if name != "set":
        return head
    reading = SetReading(**recipe["sets"])
    return head.model_copy(update={"sets": reading, "read_at": reading.read_at})


class ScoreScale(Frozen):
    """Logits of calibration responses: where the zero and the unit of a standardised score come from."""

    mean: float
    std: float = Field(gt=0)
    responses: int

    def standardise(self, logit: float) -> float:
        """Return how many standard deviations a logit is above the mean of the calibration responses."""
        return (logit - self.mean) / self.std


class Accuracy(Frozen):
    """The share of validation pairs whose better response is preferred, with its 95 % interval."""

    value: float
    low: float
    high: float
    pairs: int


class Provenance(Frozen):
    """Where the weights come from."""

    base_model: str
    base_commit: str | None = Field(default=None, description="Commit of a base on the hub.")
    base_sha256: str | None = Field(default=None, description="Hash of the weights of `base_model`.")
    adapter: str | None = None
    adapter_sha256: str | None = None
    recipe: dict[str, Any] = {}
    training: dict[str, Any] = Field(
        default={}, description="The rest of the training's record: its own base, its data and their revisions."
    )
    data_sha256: dict[str, str] = {}
    data_revisions: dict[str, str] = {}
    git_commit: str | None = None
    created: str


class Manifest(Frozen):
    """The content of manifest.json. Field names are part of the bundle format."""

    schema_version: Literal[2, 3] = SCHEMA_VERSION
    name: Annotated[str, Field(pattern=BUNDLE_NAME)]
    revision: str = ""
    demo: bool = Field(default=False, description="Whether it shows the product and is too weak for real work.")
    reads: Literal["pair", "response", "set"] = Field(
        default="pair", description="What one sequence holds: a pair of responses, one response, or all of a set."
    )
    head: Head = CLOZE_HEAD
    architecture: str | None = Field(default=None, description="The model's class in transformers.")
    spec: Spec
    special_tokens: SpecialTokens
    label_ids: tuple[int, int] | None = Field(default=None, description="Of the label words, if the head is a cloze.")
    geometry: Geometry
    parameters: int = Field(gt=0)
    graph: GraphKind = Field(
        description="plain: as transformers computes it; optimised: only what two logits need, local layers in blocks."
    )
    precisions: dict[str, FileName] = Field(min_length=1, description="Precision -> its ONNX file.")
    specialised: dict[str, dict[str, FileName]] = Field(
        default={}, description="Engine -> precision -> the file it runs instead of the one any engine can run."
    )
    stored: StoredWeights | None = Field(default=None, description="None: in the precision that computes.")
    weights: FileName | None = Field(default=None, description="Weights for the torch engine, if exported.")
    temperature: float = Field(gt=0)
    temperature_one_order: float | None = Field(
        default=None,
        gt=0,
        description="Divides the margin where one order alone was scored. None: `temperature` does, as in bundles that "
        "were written before this field.",
    )
    temperatures: dict[str, DomainTemperature] = Field(
        default={}, description="Of domains, if some need their own; `temperature` is that of all others."
    )
    auto_swap: AutoSwap | None = None
    score_scale: ScoreScale | None = None
    calibration: Calibration | None = None
    provenance: Provenance
    parity: tuple[Parity, ...] = ()
    gates: dict[str, Gate] = Field(default={}, description="Precision -> what it changed, for those below fp32.")
    files: dict[FileName, Sha256]
    evaluation: dict[str, Any] = {}

    @model_validator(mode="after")
    def _every_file_is_hashed(self) -> Self:
        graphs = [*self.precisions.values(), *(f for files in self.specialised.values() for f in files.values())]
        missing = {TOKENIZER_FILE, *graphs, *([self.weights] if self.weights else [])} - set(self.files)
        if missing:
            raise ValueError(f"no hash for {sorted(missing)}")
        return self

    @model_validator(mode="after")
    def _head_fits(self) -> Self:
        if self.reads != self.spec.template.reads:
            raise ValueError(
                f"reads {self.reads}, but template {self.spec.template.name!r} is of a {self.spec.template.reads}"
            )
        if self.head.outputs != (2 if self.reads == "pair" else 1) or (self.head.kind == "score") == (
            self.reads == "pair"
        ):
            raise ValueError(f"a {self.head.kind} head with {self.head.outputs} outputs does not read a {self.reads}")
        if (self.head.sets is not None) != (self.reads == "set"):
            raise ValueError("a head of a set has `sets`, what responses see of each other, and no other head has")
        if (self.label_ids is not None) != (self.head.kind == "cloze"):
            raise ValueError("a cloze has label_ids, and no other head has")
        if self.temperature_one_order is not None and self.reads != "pair":
            raise ValueError(f"a model that reads a {self.reads} has no orders, and no temperature_one_order")
        return self

    @model_validator(mode="after")
    def _temperatures_are_of_its_domains(self) -> Self:
        if unknown := self.temperatures.keys() - self.spec.domains.keys():
            raise ValueError(f"temperatures of domains that the model does not have: {sorted(unknown)}")
        return self

    def count_logits(self, sequences: Sequence[Encoding]) -> int:
        """Return how many logits an engine returns in each row for these sequences: of sets, the most of one set."""
        if self.reads != "set":
            return self.head.outputs
        return max(self.special_tokens.count_masks(sequence.input_ids) for sequence in sequences)

    @property
    def calibrated(self) -> Temperatures:
        """The temperatures, and how well calibration pairs determined them."""
        known, divides_one_order = self.calibration, self.temperature_one_order is not None
        log_std, one_order = (known.log_temperature_std, known.temperature_one_order) if known else (None, None)
        own = {
            domain: Temperature(one.temperature, one.log_temperature_std, one.temperature_one_order, divides_one_order)
            for domain, one in self.temperatures.items()
        }
        general = Temperature(self.temperature, log_std, self.temperature_one_order or one_order, divides_one_order)
        return Temperatures(general, own)

    @property
    def accuracy(self) -> Accuracy | None:
        """The accuracy on all validation pairs, as `tinyrm evaluate` records it; None if it has not."""
        try:
            whole = self.evaluation["domains"]["all"]
            return Accuracy(**whole["accuracy"], pairs=whole["pairs"])
        except (KeyError, TypeError, ValidationError):  # there is none, or another program wrote it
            return None

    @property
    def identity(self) -> str:
        return f"{self.name}@{self.revision}"

    def expected_revision(self) -> str:
        """Return a hash of all fields but `evaluation` and `demo`, which may be added later and change no score."""
        # A field that was added later must not change the revisions of older bundles, which lack it.
        later: dict[str, bool | set[str]] = {name: True for name in LATER if getattr(self, name) is None}
        if not self.temperatures:
            later["temperatures"] = True
        if self.schema_version == 2:
            later |= dict.fromkeys(("reads", "head", "architecture", "score_scale"), True)
        origin = {name for name in LATER_PROVENANCE if not getattr(self.provenance, name)}
        if self.calibration and self.calibration.pairs_sha256 is None:
            later["calibration"] = {"pairs_sha256"}
        sizes = {name for name in LATER_GEOMETRY if not getattr(self.geometry, name)}
        content = self.model_dump_json(
            exclude={
                "revision": True,
                "demo": True,
                "evaluation": True,
                "provenance": origin,
                "geometry": sizes,
                **later,
            }
        )
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """Return the content of the bundle's manifest file."""
        return self.model_dump_json(indent=2) + "\n"

    def with_revision(self) -> Self:
        return self.model_copy(update={"revision": self.expected_revision()})
