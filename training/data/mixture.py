"""Load the sources of a recipe as one list of pairs to learn from, and count the dropped ones."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tinyrm.chat import Message
from tinyrm.errors import InvalidInput
from tinyrm.pairs import read_jsonl
from training.data.cleaning import Loaded, Raw, Reason, clean, take, without_repetitions
from training.data.readers import hh_rlhf, oasst2, pku_saferlhf, skywork, webgpt
from training.data.source import DatasetName, Source

Reader = Callable[[Source, Path], Iterator[Raw | Reason]]


@dataclass(frozen=True, slots=True)
class Mixture:
    """Several sources as one.

    parts: name of a source -> its pairs, before repetitions between sources are removed.
    """

    loaded: Loaded
    parts: dict[str, Loaded]


def load_all(sources: Sequence[Source], data_dir: Path) -> Mixture:
    """Return all pairs of all sources, in their order, none twice and none judged both ways in one domain."""
    loaded = [load(source, data_dir) for source in sources]
    dropped: Counter[str] = Counter()
    for each in loaded:
        dropped.update(each.dropped)
    counts = Counter(source.name for source in sources)
    # A part that is used twice is named with its domain.
    names = [f"{s.name} as {s.domain}" if counts[s.name] > 1 else s.name for s in sources]
    pairs = [pair for each in loaded for pair in each.pairs]
    return Mixture(without_repetitions(pairs, dropped), dict(zip(names, loaded, strict=True)))


def load(source: Source, data_dir: Path) -> Loaded:
    """Return a source's pairs, from the data folder if they are there, else from the hub; `subset` names their part.

    Raises InvalidInput if they cannot be loaded or have another schema.
    """
    items = READERS[source.dataset](source, data_dir)
    if source.domain:
        items = (replace(item, domain=source.domain) if isinstance(item, Raw) else item for item in items)
    loaded = clean(items)
    if not loaded.pairs:
        raise InvalidInput(f"{source.name} gives no pairs; dropped: {loaded.dropped or 'none'}")
    if source.max_pairs and source.max_pairs < len(loaded.pairs):
        left_out = len(loaded.pairs) - source.max_pairs
        return Loaded(take(loaded.pairs, source.max_pairs), loaded.dropped | {"beyond max_pairs": left_out})
    return loaded


def load_conversations(source: Source, data_dir: Path) -> list[list[Message]]:
    """Return the dialogues of OASST2 that end in a reply of the assistant, for the masked-LM stage."""
    if source.dataset != "oasst2":
        raise InvalidInput(f"{source.name} holds no conversations; oasst2 does")
    found = list(oasst2.conversations(source, data_dir))
    if not found:
        raise InvalidInput(f"{source.name} gives no conversations")
    return found


def read_own(source: Source, data_dir: Path) -> Iterator[Raw | Reason]:
    """Read a file of our own: prompt, chosen, rejected, and optionally domain and subset."""
    path = data_dir / str(source.path)
    for number, record in enumerate(read_jsonl(path), start=1):
        place = f"{path}, line {number}"
        if not isinstance(record, dict):
            raise InvalidInput(f"{place}: a record must be an object")
        for name in ("prompt", "chosen", "rejected"):
            if not isinstance(record.get(name), str):
                raise InvalidInput(f"{place}: {name} must be a string")
        for name in ("domain", "subset"):
            if not isinstance(record.get(name), str | None):
                raise InvalidInput(f"{place}: {name} must be a string or missing")
        if source.part in (None, record.get("domain")):
            texts = (record["prompt"], record["chosen"], record["rejected"])
            yield Raw(*texts, domain=record.get("domain"), origin=record.get("subset"))


READERS: dict[DatasetName, Reader] = {
    "skywork": skywork.read,
    "webgpt": webgpt.read,
    "hh-rlhf": hh_rlhf.read,
    "pku-saferlhf": pku_saferlhf.read,
    "oasst2": oasst2.read,
    "jsonl": read_own,
}
