"""Load the sources of a recipe as one list of pairs to learn from, and count the dropped ones."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tinyrm.bundle import sha256
from tinyrm.chat import Message
from tinyrm.errors import InvalidInput
from tinyrm.hub import COMMIT
from training.data.cleaning import Loaded, Raw, Reason, clean, pairs_sha256, take, without_repetitions
from training.data.readers import any_form, hh_rlhf, oasst2, pku_saferlhf, skywork, webgpt
from training.data.rows import Published, pinned
from training.data.source import ANY_FORM, DatasetName, Source

Reader = Callable[[Source, Path], Iterator[Raw | Reason]]


@dataclass(frozen=True, slots=True)
class Mixture:
    """Several sources as one.

    parts: name of a source -> its pairs, before repetitions between sources are removed.
    sha256: path of a file of our own, or name of a published set -> hash of the file, or of the pairs of the set.
    """

    loaded: Loaded
    parts: dict[str, Loaded]
    sha256: dict[str, str]

    @property
    def commits(self) -> dict[str, str]:
        """Return name of a source -> the commit on the hub that it was read at, where that is known."""
        return {name: part.commit for name, part in self.parts.items() if part.commit}


def load_all(sources: Sequence[Source], data_dir: Path) -> Mixture:
    """Return all pairs of all sources, in their order, none twice and none judged both ways in one domain."""
    loaded = [load(source, data_dir) for source in sources]
    dropped: Counter[str] = Counter()
    for each in loaded:
        dropped.update(each.dropped)
    counts = Counter(source.name for source in sources)
    # A part that is used twice is named with its domain.
    names = unique([f"{s.name} as {s.domain}" if counts[s.name] > 1 else s.name for s in sources])
    pairs = [pair for each in loaded for pair in each.pairs]
    hashes = {}
    for name, source, each in zip(names, sources, loaded, strict=True):
        if source.dataset in ("file", "jsonl") and source.path and (data_dir / source.path).is_file():
            hashes[source.path] = sha256(data_dir / source.path)
        else:
            hashes[name] = pairs_sha256(each.pairs)
    return Mixture(without_repetitions(pairs, dropped), dict(zip(names, loaded, strict=True)), hashes)


def unique(names: Sequence[str]) -> list[str]:
    """Return the names, a repeated one with its number: a source may be named twice, as with other columns."""
    before = Counter[str]()
    found = []
    for name in names:
        before[name] += 1
        found.append(f"{name} ({before[name]})" if before[name] > 1 else name)
    return found


def load(source: Source, data_dir: Path) -> Loaded:
    """Return a source's pairs, from the data folder if they are there, else from the hub; `subset` names their part.

    Raises InvalidInput if they cannot be loaded or have another schema.
    """
    read, published = READERS[source.dataset]
    if source.dataset == "hub":
        source = any_form.pinned(source)
    elif published:
        source = pinned(published, source, data_dir)
    items = read(source, data_dir)
    if source.domain:
        items = (replace(item, domain=source.domain) if isinstance(item, Raw) else item for item in items)
    loaded = clean(items)
    if not loaded.pairs:
        raise InvalidInput(f"{source.name} gives no pairs; dropped: {loaded.dropped or 'none'}")
    if source.max_pairs and source.max_pairs < len(loaded.pairs):
        left_out = len(loaded.pairs) - source.max_pairs
        loaded = Loaded(take(loaded.pairs, source.max_pairs), loaded.dropped | {"beyond max_pairs": left_out})
    commit = source.revision if source.revision and COMMIT.fullmatch(source.revision) else None
    return replace(loaded, commit=commit)


def load_conversations(source: Source, data_dir: Path) -> list[list[Message]]:
    """Return the dialogues of OASST2 that end in a reply of the assistant, for the masked-LM stage."""
    if source.dataset != "oasst2":
        raise InvalidInput(f"{source.name} holds no conversations; oasst2 does")
    found = list(oasst2.conversations(source, data_dir))
    if not found:
        raise InvalidInput(f"{source.name} gives no conversations")
    return found


READERS: dict[DatasetName, tuple[Reader, Published | None]] = {
    "skywork": (skywork.read, skywork.PUBLISHED),
    "webgpt": (webgpt.read, webgpt.PUBLISHED),
    "hh-rlhf": (hh_rlhf.read, hh_rlhf.PUBLISHED),
    "pku-saferlhf": (pku_saferlhf.read, pku_saferlhf.PUBLISHED),
    "oasst2": (oasst2.read, oasst2.PUBLISHED),
    **dict.fromkeys(ANY_FORM, (any_form.read, None)),
}
