"""How a cloze model wants to be asked. Written beside the weights in training, carried into the bundle by export."""

import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tinyrm.errors import UnknownDomain
from tinyrm.template import FIGURE2, TEMPLATES, Template

# What training leaves beside the weights, and export looks for.
SPEC_FILE = "cloze.json"
RUN_FILE = "training.json"
HELD_OUT_FILE = "held_out.jsonl"


def read_run(folder: Path) -> dict[str, Any]:
    """The record that a training left in its folder; empty for a model trained elsewhere."""
    path = folder / RUN_FILE
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return record


def trained_head(folder: Path) -> str:
    """What a model reads the preference with, cloze unless its training says otherwise."""
    head: str = read_run(folder).get("recipe", {}).get("head", "cloze")
    return head


class ClozeSpec(BaseModel):
    """Template, token budget, and the instruction of each domain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: Template = FIGURE2
    max_tokens: int = Field(default=2048, gt=0)
    domains: dict[str, str] = Field(
        default={"general": "Select the best response."}, min_length=1, description="Domain name -> instruction."
    )
    default_domain: str = "general"

    @field_validator("template", mode="before")
    @classmethod
    def _template_by_name(cls, value: Any) -> Any:
        """A recipe may name one of those that ship; files that travel hold the whole template."""
        if isinstance(value, str) and value not in TEMPLATES:
            raise ValueError(f"no template {value!r}; there are: {', '.join(sorted(TEMPLATES))}")
        return TEMPLATES[value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _default_exists(self) -> Self:
        if self.default_domain not in self.domains:
            raise ValueError(f"default_domain {self.default_domain!r} is not among domains {sorted(self.domains)}")
        return self

    def instruction(self, domain: str | None = None) -> str:
        """The instruction of a domain, of the default domain for None. Raises UnknownDomain."""
        name = self.default_domain if domain is None else domain
        if name not in self.domains:
            raise UnknownDomain(f"no domain {name!r} in this model; it has: {', '.join(sorted(self.domains))}")
        return self.domains[name]

    def instruction_for_pair(self, domain: str | None) -> str:
        """As `instruction`, but a domain this model was not made for is asked under the default one."""
        return self.instruction(domain if domain in self.domains else None)

    def save(self, folder: Path) -> None:
        (folder / SPEC_FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls.model_validate_json((folder / SPEC_FILE).read_text(encoding="utf-8"))
