"""The input of a model: template, token budget, instructions. Training writes it, export puts it into a bundle.

Only `Spec.resolve` turns domain, instruction and prompt into the texts that the model reads.
"""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from tinyrm.chat import TextOrTurns, to_messages
from tinyrm.errors import InvalidInput, UnknownDomain, describe
from tinyrm.template import FIGURE2, TEMPLATES, Template
from tinyrm.truncation import Instruction, KeptOfResponse

# How training reads the preference, as recipes name it.
HeadKind = Literal["cloze", "pair-cls", "pair-mean", "pointwise", "set", "tokens"]

# Files that training writes beside the weights.
SPEC_FILE = "cloze.json"
RUN_FILE = "training.json"
HELD_OUT_FILE = "held_out.jsonl"


def read_run(folder: Path) -> dict[str, Any]:
    """Return the record of the training run in its folder; empty for a model trained elsewhere. Raises InvalidInput."""
    path = folder / RUN_FILE
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise InvalidInput(f"{path} cannot be read: {error}") from error
    mappings = ("recipe", "data_sha256", "data_revisions", "held_out")
    if not isinstance(record, dict) or not all(isinstance(record.get(name, {}), dict) for name in mappings):
        raise InvalidInput(
            f"{path} is not the record of a training run: one object, {', '.join(mappings)} objects in it"
        )
    return record


def trained_head(folder: Path) -> HeadKind:
    """Return the head that the model in `folder` was trained with; `cloze` if there is no record."""
    head: HeadKind = read_run(folder).get("recipe", {}).get("head", "cloze")
    return head


class Resolved(NamedTuple):
    """The two texts that the model reads besides the responses.

    instruction: a `tinyrm.truncation.Instruction` where the domain keeps more than the start of a long response.
    """

    instruction: str
    prompt: str


class Spec(BaseModel):
    """Template, token budget, and the instruction of each domain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: Template = FIGURE2
    max_tokens: int = Field(default=2048, gt=0)
    domains: dict[str, str] = Field(
        default={"general": "Select the best response."}, min_length=1, description="Domain name -> instruction."
    )
    default_domain: str = "general"
    truncation: KeptOfResponse | dict[str, KeptOfResponse] = Field(
        default="start",
        description="What is kept of a response that is too long: its `start`, or both `ends`, half and half. One for "
        "all domains, or domain -> its own; `start` for those that are not listed.",
    )

    @field_validator("template", mode="before")
    @classmethod
    def _template_by_name(cls, value: Any) -> Any:
        """Accept the name of a built-in template, as recipes use it; saved specs hold the whole template.

        Those of other people's models have no label words, and are not trained with.
        """
        own = {name: template for name, template in TEMPLATES.items() if template.label_words}
        if isinstance(value, str) and value not in own:
            raise ValueError(f"no template {value!r}; available: {', '.join(sorted(own))}")
        return own[value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _default_exists(self) -> Self:
        if self.default_domain not in self.domains:
            raise ValueError(f"default_domain {self.default_domain!r} is not among domains {sorted(self.domains)}")
        if isinstance(self.truncation, dict) and (unknown := self.truncation.keys() - self.domains.keys()):
            raise ValueError(f"truncation of {sorted(unknown)}, which are not among domains {sorted(self.domains)}")
        return self

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write the specs of older bundles as they were written then: their hash must not change."""
        return {name: value for name, value in handler(self).items() if name != "truncation" or value != "start"}

    def resolve(
        self,
        prompt: TextOrTurns,
        domain: str | None = None,
        instruction: str | None = None,
        *,
        or_default: bool = False,
    ) -> Resolved:
        """Return the instruction and the prompt text that the model reads.

        prompt: a text, or chat messages in a form of `tinyrm.chat.read_turn`, which the template renders.
        domain: selects the instruction; None selects the default domain.
        instruction: replaces the domain's instruction; the domain must exist nevertheless, and states what is kept of
            long responses.
        or_default: whether the default domain replaces an unknown one, for pairs with labels of another source.

        Raises UnknownDomain, InvalidRequest; InvalidInput for an instruction that the template has no place for.
        """
        if instruction is not None and "instruction" not in self.template.slots:
            raise InvalidInput("this model reads no instruction; leave it out")
        name = self.find_domain(domain, or_default=or_default)
        return Resolved(
            Instruction.of(self.domains[name] if instruction is None else instruction, self.kept(name)),
            prompt if isinstance(prompt, str) else self.template.render_messages(to_messages(prompt)),
        )

    def kept(self, domain: str) -> KeptOfResponse:
        """Return what is kept of a long response in a domain, by the name that `find_domain` returns."""
        return self.truncation if isinstance(self.truncation, str) else self.truncation.get(domain, "start")

    def find_domain(self, domain: str | None = None, *, or_default: bool = False) -> str:
        """Return the name of the domain that a request selects, as `resolve` does. Raises UnknownDomain."""
        name = self.default_domain if domain is None or (or_default and domain not in self.domains) else domain
        if name not in self.domains:
            raise UnknownDomain(f"no domain {name!r} in this model; it has: {', '.join(sorted(self.domains))}")
        return name

    def instruction(self, domain: str | None = None, *, or_default: bool = False) -> str:
        """Return the instruction of a domain, as `resolve` does."""
        return self.resolve("", domain, or_default=or_default).instruction

    def of_head(self, head: HeadKind) -> Self:
        """Return the spec with the template that a head reads, from that of a pair. Raises InvalidTemplate."""
        if head in ("pointwise", "tokens"):
            return self.model_copy(update={"template": self.template.of_one_response()})
        return self.model_copy(update={"template": self.template.of_a_set()}) if head == "set" else self

    def save(self, folder: Path) -> None:
        (folder / SPEC_FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the spec that training saved. Raises InvalidInput."""
        path = folder / SPEC_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise InvalidInput(f"{path}: {describe(error)}") from error


def shared_domain(domain: str | None, *specs: Spec) -> list[str | None]:
    """Return the domain of one request in each of several models that answer it together.

    A model that lacks the domain uses its default, None. Raises UnknownDomain if all lack it.
    """
    if domain is not None and not any(domain in spec.domains for spec in specs):
        known = sorted({name for spec in specs for name in spec.domains})
        raise UnknownDomain(f"no domain {domain!r} in these models; they have: {', '.join(known)}")
    return [domain if domain in spec.domains else None for spec in specs]
