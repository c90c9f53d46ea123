"""From what a recipe names to pairs to learn from."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyrm.chat import Message
from tinyrm.errors import InvalidInput
from tinyrm.pairs import read_jsonl
from training.data.cleaning import Loaded, Raw, Reason, clean, take, without_repetitions
from training.data.readers import hh_rlhf, oasst2, pku_saferlhf, skywork, webgpt
from training.data.source import DatasetName, Source

Reader = Callable[[Source, Path], Iterator[Raw | Reason]]


def load(source: Source, data_dir: Path) -> Loaded:
    """Its pairs, from the data folder if they are there, else from the hub; `subset` says what part each is from.

    Raises InvalidInput if they cannot be had or have another schema.
    """
    items = READERS[source.dataset](source, data_dir)
    loaded = clean(_with_domain(items, source.domain))
    if not loaded.pairs:
        raise InvalidInput(f"{source.name} gives no pairs; dropped: {loaded.dropped or 'none'}")
    if source.max_pairs and source.max_pairs < len(loaded.pairs):
        left_out = len(loaded.pairs) - source.max_pairs
        return Loaded(take(loaded.pairs, source.max_pairs), loaded.dropped | {"beyond max_pairs": left_out})
    return loaded


@dataclass(frozen=True, slots=True)
class Mixture:
    """Several sources as one. parts: name of a source -> what it gave, before repetitions between sources went."""

    loaded: Loaded
    parts: dict[str, Loaded]


def load_all(sources: Sequence[Source], data_dir: Path) -> Mixture:
    """All pairs of all sources, in their order, none twice and none judged both ways in one domain."""
    parts = [(source, load(source, data_dir)) for source in sources]
    before: Counter[str] = Counter()
    for _, part in parts:
        before.update(part.dropped)
    pairs = [pair for _, part in parts for pair in part.pairs]
    names = _names([source for source, _ in parts])
    by_name = {name: part for name, (_, part) in zip(names, parts, strict=True)}
    return Mixture(without_repetitions(pairs, before), by_name)


def load_conversations(source: Source, data_dir: Path) -> list[list[Message]]:
    """Dialogues that end in a reply of the assistant, to learn a language from; OASST2 has them."""
    if source.dataset != "oasst2":
        raise InvalidInput(f"{source.name} holds no conversations; oasst2 does")
    found = list(oasst2.conversations(source, data_dir))
    if not found:
        raise InvalidInput(f"{source.name} gives no conversations")
    return found


def _read_jsonl(source: Source, data_dir: Path) -> Iterator[Raw | Reason]:
    """Our own files: prompt, chosen, rejected, and a domain and a subset where they have them."""
    path = data_dir / str(source.path)
    for number, record in enumerate(read_jsonl(path), start=1):
        raw = _raw(record, f"{path}, line {number}")
        if source.part in (None, raw.domain):
            yield raw


def _raw(record: object, place: str) -> Raw:
    if not isinstance(record, dict):
        raise InvalidInput(f"{place}: a record has to be an object")
    for name in ("prompt", "chosen", "rejected"):
        if not isinstance(record.get(name), str):
            raise InvalidInput(f"{place}: {name} has to be a string")
    for name in ("domain", "subset"):
        if not isinstance(record.get(name), str | None):
            raise InvalidInput(f"{place}: {name} has to be a string or missing")
    return Raw(record["prompt"], record["chosen"], record["rejected"], record.get("domain"), record.get("subset"))


def _with_domain(items: Iterator[Raw | Reason], domain: str | None) -> Iterator[Raw | Reason]:
    for item in items:
        if domain and isinstance(item, Raw):
            yield Raw(item.prompt, item.chosen, item.rejected, domain, item.origin)
        else:
            yield item


def _names(sources: Sequence[Source]) -> list[str]:
    """A name for each, told apart by domain where the same part is used twice."""
    counts = Counter(source.name for source in sources)
    return [f"{s.name} as {s.domain}" if counts[s.name] > 1 else s.name for s in sources]


READERS: dict[DatasetName, Reader] = {
    "skywork": skywork.read,
    "webgpt": webgpt.read,
    "hh-rlhf": hh_rlhf.read,
    "pku-saferlhf": pku_saferlhf.read,
    "oasst2": oasst2.read,
    "jsonl": _read_jsonl,
}
