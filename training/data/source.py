"""The sources of a recipe's data, and facts about the published sets that are known without reading them."""

import re
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from tinyrm.verdicts import PAIRS_PER_ROW

DatasetName = Literal["skywork", "webgpt", "hh-rlhf", "pku-saferlhf", "oasst2", "file", "jsonl", "hub"]
# Sets whose rows may have any form of `tinyrm.verdicts`. jsonl is the older name of file.
ANY_FORM: tuple[DatasetName, ...] = ("file", "jsonl", "hub")
# What `columns` may name: what `tinyrm.verdicts` and `tinyrm.preferences` read, domain and subset.
OUR_COLUMNS = (
    *("prompt", "system", "chosen", "rejected", "response_a", "response_b", "winner", "tie"),
    *("probability", "margin", "weight", "score_chosen", "score_rejected"),
    *("responses", "scores", "ranks", "domain", "subset"),
)

# Skywork-Reward-Preference-80K-v0.2, 77,016 pairs: `source` of a row -> its pairs in the published set.
SKYWORK_PAIRS = {
    "helpsteer2": 7221,
    "offsetbias": 8504,
    "wildguard": 6709,
    "magpie_pro_llama3.1": 29682,
    "magpie_ultra": 22828,
    "magpie_pro": 2030,
    "magpie_air": 42,
}
# The paper's three shares of it, found by their sizes (7.22k, 15.2k, 54.6k). OffsetBias teaches a judge to see through
# style, which chat needs as much as safety, so it and the other half of the safety share are also parts of their own.
SKYWORK_PARTS = {
    "chat": ("helpsteer2",),
    "safety": ("offsetbias", "wildguard"),
    "reasoning": tuple(name for name in SKYWORK_PAIRS if name.startswith("magpie")),
    "offsetbias": ("offsetbias",),
    "wildguard": ("wildguard",),
}
# Folders of HH-RLHF with preference pairs, and their pairs for training. Its red-team-attempts are transcripts.
HH_PAIRS = {
    "harmless-base": 42537,
    "helpful-base": 43835,
    "helpful-online": 22007,
    "helpful-rejection-sampled": 52421,
}
# Published rounded: "14.3k" comparisons that are not ties, "26.9k" rows for training.
WEBGPT_PAIRS = 14_300
PKU_PAIRS = 26_900

PARTS: dict[DatasetName, tuple[str, ...]] = {
    "skywork": tuple(SKYWORK_PARTS),
    "webgpt": ("without-citations",),
    "hh-rlhf": tuple(HH_PAIRS),
    "pku-saferlhf": ("safer", "better"),
    "oasst2": (),
    "file": (),
    "jsonl": (),
    "hub": (),
}
LANGUAGE = re.compile(r"[a-z]{2}(-[A-Z]{2})?")


class Scores(BaseModel):
    """How scores of responses become margins.

    The margin of a pair, the log-odds that the chosen response is the better one, is `margin_per_point` times the
    difference of the two scores: scores are taken as strengths of Bradley and Terry (1952) on a scale of their own. It
    is eta (r_chosen - r_rejected) of reward-aware preference optimisation (arXiv 2502.00203), whose loss ours is. At
    1, one point more is the better response in 73 of 100 cases; at 0.5 in 62.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin_per_point: float = Field(gt=0, allow_inf_nan=False)


class Source(BaseModel):
    """One set of preference pairs, or a part of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: DatasetName
    part: str | None = Field(
        default=None,
        description="A share of the set (Skywork: chat, safety, reasoning, offsetbias, wildguard; HH-RLHF: one of its "
        "folders; OASST2: a language such as en; our own files: a domain), or another version of it (PKU: better "
        "instead of safer; WebGPT: without-citations). None: all of it.",
    )
    domain: str | None = Field(default=None, description="Domain of its pairs; None: the domain of each record.")
    max_pairs: int | None = Field(default=None, gt=0, description="Take at most this many, the same ones every time.")
    path: str | None = Field(
        default=None,
        description="File or folder, relative to the data folder or absolute. dataset file: JSON lines, a JSON array, "
        "Parquet or CSV, plain or packed as .gz, .xz or .zst; a folder of such files, or one of `save_to_disk`. A "
        "published set: with its schema; None: the folder or file there that has the name of the set, or else the hub.",
    )
    id: str | None = Field(default=None, min_length=1, description="dataset hub: of the set, such as owner/name.")
    config: str | None = Field(default=None, description="dataset hub: the part to read, if the set has several.")
    split: str = Field(default="train", min_length=1, description="dataset hub, and folders of `save_to_disk`.")
    columns: dict[str, str | None] = Field(
        default={},
        description=f"For file and hub: our column -> theirs, where names differ; null: theirs of our name is not "
        f"read. Ours: {', '.join(OUR_COLUMNS)}.",
    )
    ties: Literal["drop", "learn"] = Field(
        default="drop",
        description="Ties of the data: no response preferred, or equal scores or ranks. Learnt, a tie has a "
        "probability of one half. A row with a `probability` or a `margin` is learnt in either case.",
    )
    scores: Scores | None = Field(
        default=None,
        description="For file and hub: learn margins from scores; None: their order alone, as plain verdicts.",
    )
    pairs_per_row: int = Field(
        default=PAIRS_PER_ROW,
        gt=0,
        description="For file and hub: pairs of a row with several responses, at most; all pairs of four are 6. Which "
        "ones depends on their texts only.",
    )
    revision: str | None = Field(
        default=None,
        min_length=1,
        description="Commit, tag or branch of the set on the hub; None: the newest. The commit is recorded either way.",
    )

    @model_validator(mode="after")
    def _part_exists(self) -> Self:
        if self.dataset in ("file", "jsonl") and self.path is None:
            raise ValueError(f"dataset {self.dataset} needs a path")
        if (self.dataset == "hub") != (self.id is not None):
            raise ValueError("dataset hub needs an id, such as owner/name, and no other has one")
        if self.dataset == "hub" and self.path is not None:
            raise ValueError("dataset hub reads the hub; for a copy, use dataset: file with its path")
        if self.path is not None and self.revision is not None:
            raise ValueError("a revision is one of the hub, and path names a local copy; remove one of them")
        if self.part is None or self.dataset in ANY_FORM:
            return self
        if self.dataset == "oasst2" and LANGUAGE.fullmatch(self.part):
            return self
        if self.part not in PARTS[self.dataset]:
            known = ", ".join(PARTS[self.dataset]) or ("languages such as en" if self.dataset == "oasst2" else "none")
            raise ValueError(f"dataset {self.dataset} has no part {self.part!r}; its parts: {known}")
        return self

    @model_validator(mode="after")
    def _options_of_any_form(self) -> Self:
        own: dict[str, object] = {
            "columns": {},
            "scores": None,
            "pairs_per_row": PAIRS_PER_ROW,
            "config": None,
            "split": "train",
        }
        if self.dataset not in ANY_FORM:
            given = [name for name, default in own.items() if getattr(self, name) != default]
            if given:
                raise ValueError(f"dataset {self.dataset} has a schema of its own; remove {', '.join(given)}")
        if self.config is not None and self.dataset != "hub":
            raise ValueError(f"a config is one of the hub; dataset {self.dataset} has none")
        if unknown := sorted(self.columns.keys() - set(OUR_COLUMNS)):
            raise ValueError(f"columns: {unknown[0]!r} is not one of ours, which are {', '.join(OUR_COLUMNS)}")
        return self

    @model_serializer(mode="wrap")
    def _without_defaults_of_any_form(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what a source of a published set cannot have, and what is as it would be without it."""
        fields: dict[str, Any] = dump(self)
        own = ("id", "config", "split", "columns", "ties", "scores", "pairs_per_row")
        plain = {name: type(self).model_fields[name].default for name in own}
        return {name: value for name, value in fields.items() if name not in plain or value != plain[name]}

    def __hash__(self) -> int:
        """Hash a frozen value that holds a mapping."""
        return hash(self.model_dump_json())

    @property
    def name(self) -> str:
        """As on the command line: skywork:chat, jsonl:train.jsonl.gz; for a part of a file, with the part."""
        if self.dataset in ANY_FORM:
            whole = "/".join(filter(None, (self.path, self.id, self.config)))
            split = f", {self.split}" if self.split != "train" else ""
            return f"{self.dataset}:{whole}{split}" + (f", {self.part}" if self.part else "")
        return f"{self.dataset}:{self.part}" if self.part else self.dataset


class Texts(BaseModel):
    """Text to learn a vocabulary or a language from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    kind: Literal["documents", "pairs"] = Field(
        description="documents: records with `text`. pairs: preference pairs, both responses in one text."
    )
    max_mb: float | None = Field(default=None, gt=0, description="Take a random part of about this many megabytes.")


def published_pairs(source: Source) -> int | None:
    """Return how many pairs the published set gives before any are dropped; None if that is not published.

    A plan without network needs it. WebGPT and PKU publish rounded figures.
    """
    counts = {
        "skywork": SKYWORK_PAIRS,
        "hh-rlhf": HH_PAIRS,
        "webgpt": {"": WEBGPT_PAIRS},
        "pku-saferlhf": {"": PKU_PAIRS},
    }
    if source.dataset not in counts:
        return None
    shares = counts[source.dataset]
    wanted = SKYWORK_PARTS.get(source.part or "", (source.part,))
    whole = sum(pairs for name, pairs in shares.items() if name in wanted) or sum(shares.values())
    return min(whole, source.max_pairs or whole)
