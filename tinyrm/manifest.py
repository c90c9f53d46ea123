"""What a bundle says of itself."""

import hashlib
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tinyrm.encoding import SpecialTokens
from tinyrm.flops import Geometry
from tinyrm.spec import ClozeSpec

SCHEMA_VERSION: Final = 1
MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
CARD_FILE = "README.md"

# A bare file name: nothing that could point outside the bundle.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Parity(Frozen):
    """One passed check: the largest difference of logits between two ways to the same answer."""

    check: str
    max_difference: float
    tolerance: float


class Provenance(Frozen):
    """Where the weights come from."""

    base_model: str
    adapter: str | None = None
    recipe: dict[str, Any] = {}
    data_sha256: dict[str, str] = {}
    git_commit: str | None = None
    created: str


class Manifest(Frozen):
    """Everything a later stage needs to know; no stage asks for it again."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    revision: str = ""
    spec: ClozeSpec
    special_tokens: SpecialTokens
    label_ids: tuple[int, int]
    geometry: Geometry
    parameters: int = Field(gt=0)
    graph: Literal["plain"] = Field(description="How the ONNX graph was made; plain: as transformers computes it.")
    precisions: dict[str, FileName] = Field(min_length=1, description="Precision -> its ONNX file.")
    temperature: float = Field(gt=0)
    provenance: Provenance
    parity: tuple[Parity, ...] = ()
    files: dict[FileName, Sha256]
    evaluation: dict[str, Any] = {}

    @model_validator(mode="after")
    def _every_file_is_hashed(self) -> Self:
        missing = {TOKENIZER_FILE, *self.precisions.values()} - set(self.files)
        if missing:
            raise ValueError(f"no hash for {sorted(missing)}")
        return self

    @property
    def identity(self) -> str:
        return f"{self.name}@{self.revision}"

    def expected_revision(self) -> str:
        """A hash of every field but the evaluation results, which may be added later."""
        content = self.model_dump_json(exclude={"revision", "evaluation"})
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def with_revision(self) -> Self:
        return self.model_copy(update={"revision": self.expected_revision()})
