"""Keep the pairs that teach something, and count the dropped ones by reason."""

import hashlib
import heapq
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from tinyrm.pairs import PreferencePair
from tinyrm.verdicts import Label

# tie: no response is better. mismatch: the two dialogues differ before the last response, or do not end in one.
# unlinked: a message whose tree has a gap above it. empty: a blank prompt or response. identical: the same response
# twice. broken: a text that UTF-8 cannot hold, split in the middle of an emoji. duplicate: the same pair again.
# contradiction: the same pair also the other way round, without a probability; neither verdict is kept. unreadable: a
# message without a text, such as an image, or with an unknown role.
Reason = Literal[
    "tie", "mismatch", "unlinked", "empty", "identical", "broken", "duplicate", "contradiction", "unreadable"
]


@dataclass(frozen=True, slots=True)
class Raw:
    """A pair as read, not checked yet: a table may lack a text.

    origin: the set and its part, `skywork:helpsteer2`.
    label: how sure the verdict is; None is certain.
    """

    prompt: str | None
    chosen: str | None
    rejected: str | None
    domain: str | None
    origin: str | None
    label: Label | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """Pairs to learn from.

    dropped: reason -> number of pairs that are not among them.
    commit: of a set on the hub, the commit that was read; None for local files, and without an answer from the hub.
    """

    pairs: list[PreferencePair]
    dropped: dict[str, int] = field(default_factory=dict)
    commit: str | None = None

    @property
    def read(self) -> int:
        """Return the number of pairs, kept and dropped."""
        return len(self.pairs) + sum(self.dropped.values())


def clean(items: Iterable[Raw | Reason]) -> Loaded:
    """Return the pairs that teach something. An item that is a reason is a pair that its reader has dropped."""
    dropped: Counter[str] = Counter()
    pairs = []
    for item in items:
        reason = item if isinstance(item, str) else fault(item)
        if reason:
            dropped[reason] += 1
        elif isinstance(item, Raw):
            # Checked above; validating 280,000 pairs again would take seconds.
            pairs.append(
                PreferencePair.model_construct(
                    prompt=item.prompt,
                    chosen=item.chosen,
                    rejected=item.rejected,
                    domain=item.domain,
                    subset=item.origin,
                    **(item.label.model_dump() if item.label else {}),
                ).oriented()
            )
    return without_repetitions(pairs, dropped)


def tie_of(raw: Raw, ties: Literal["drop", "learn"]) -> Raw | Reason:
    """Return a pair of which neither response is preferred, as a source has its ties."""
    return replace(raw, label=Label(probability=0.5)) if ties == "learn" else "tie"


def fault(raw: Raw) -> Reason | None:
    """Return why a pair teaches nothing, or None."""
    texts = (raw.prompt or "", raw.chosen or "", raw.rejected or "")
    if not all(text.strip() for text in texts):
        return "empty"
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which a tokenizer refuses
        return "broken"
    return "identical" if normalise(texts[1]) == normalise(texts[2]) else None


def without_repetitions(pairs: list[PreferencePair], dropped: Counter[str] | None = None) -> Loaded:
    """Keep the first of each pair, and none of a pair with both verdicts.

    Two domains may share a pair and judge it differently: their instructions differ.

    Where one of the repetitions has a probability, they are several opinions, and none contradicts another: the first
    is kept, with their mean (`joined`).
    """
    directions: dict[bytes, set[bool]] = defaultdict(set)
    keys = [key_and_direction(pair) for pair in pairs]
    soft = {key for pair, (key, _) in zip(pairs, keys, strict=True) if pair.is_soft}
    opinions: dict[bytes, list[PreferencePair]] = defaultdict(list)
    for pair, (key, direction) in zip(pairs, keys, strict=True):
        directions[key].add(direction)
        if key in soft:
            opinions[key].append(pair)
    counts: Counter[str] = Counter(dropped or {})
    seen: set[bytes] = set()
    kept = []
    for pair, (key, _) in zip(pairs, keys, strict=True):
        if len(directions[key]) > 1 and key not in soft:
            counts["contradiction"] += 1
        elif key in seen:
            counts["duplicate"] += 1
        else:
            seen.add(key)
            kept.append(joined(opinions[key]) if len(opinions[key]) > 1 else pair)
    return Loaded(kept, dict(counts))


def joined(opinions: list[PreferencePair]) -> PreferencePair:
    """Return the first of several pairs of the same texts, with the mean of all probabilities by weight.

    A plain verdict has the probability 1. Cross-entropy is linear in the probability, so learning the mean is learning
    all of them. The weight is their mean too: a repetition gives a pair no more weight, as it does without
    probabilities.
    """
    first, weight = opinions[0], sum(pair.weight for pair in opinions)
    chosen = normalise(first.chosen)
    agreeing = (pair.target if normalise(pair.chosen) == chosen else 1 - pair.target for pair in opinions)
    mean = sum(pair.weight * p for pair, p in zip(opinions, agreeing, strict=True)) / weight
    label = {"probability": mean, "margin": None, "weight": weight / len(opinions)}
    return first.model_copy(update=label).oriented()


def take(pairs: list[PreferencePair], count: int) -> list[PreferencePair]:
    """Return `count` pairs in their order. Which ones depends on their texts only, not on the order of a file."""
    if count >= len(pairs):
        return pairs
    ranked = heapq.nsmallest(count, range(len(pairs)), key=lambda i: digest("", pairs[i].prompt, pairs[i].chosen))
    return [pairs[i] for i in sorted(ranked)]


def normalise(text: str) -> str:
    """Return a text without differences of Unicode form, blanks at line ends and outer empty lines.

    Indentation and upper case stay: both have meaning, the first in code.
    """
    text = text if text.isascii() else unicodedata.normalize("NFC", text)
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


def pairs_sha256(pairs: Iterable[PreferencePair]) -> str:
    """Return a hash of all that is learned from, in order."""
    whole = hashlib.sha256()
    for pair in pairs:
        fields: list[object] = [pair.prompt, pair.chosen, pair.rejected, pair.domain, pair.subset]
        if pair.is_soft or pair.weight != 1:
            fields += [pair.probability, pair.margin, pair.weight]
        whole.update(json.dumps(fields).encode() + b"\n")
    return whole.hexdigest()


def key_and_direction(pair: PreferencePair) -> tuple[bytes, bool]:
    """Return a key that ignores which response was chosen, and whether the chosen one sorts first."""
    chosen, rejected = normalise(pair.chosen), normalise(pair.rejected)
    first, second = sorted((chosen, rejected))
    return digest(pair.domain or "", normalise(pair.prompt), first, second), chosen == first


def digest(*texts: str) -> bytes:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).digest()
