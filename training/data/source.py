"""The sources of a recipe's data, and facts about the published sets that are known without reading them."""

import re
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DatasetName = Literal["skywork", "webgpt", "hh-rlhf", "pku-saferlhf", "oasst2", "jsonl"]

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
    "jsonl": (),
}
LANGUAGE = re.compile(r"[a-z]{2}(-[A-Z]{2})?")


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
        description="File or folder with the published schema, relative to the data folder; None: the folder or file "
        "there that has the name of the set, or else the hub.",
    )
    revision: str | None = Field(
        default=None,
        min_length=1,
        description="Commit, tag or branch of the set on the hub; None: the newest. The commit is recorded either way.",
    )

    @model_validator(mode="after")
    def _part_exists(self) -> Self:
        if self.dataset == "jsonl" and self.path is None:
            raise ValueError("dataset jsonl needs a path")
        if self.path is not None and self.revision is not None:
            raise ValueError("a revision is one of the hub, and path names a local copy; remove one of them")
        if self.part is None or self.dataset == "jsonl":
            return self
        if self.dataset == "oasst2" and LANGUAGE.fullmatch(self.part):
            return self
        if self.part not in PARTS[self.dataset]:
            known = ", ".join(PARTS[self.dataset]) or ("languages such as en" if self.dataset == "oasst2" else "none")
            raise ValueError(f"dataset {self.dataset} has no part {self.part!r}; its parts: {known}")
        return self

    @property
    def name(self) -> str:
        """As on the command line: skywork:chat, jsonl:train.jsonl.gz; for a part of a file, with the part."""
        if self.dataset == "jsonl":
            return f"jsonl:{self.path}" + (f", {self.part}" if self.part else "")
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
