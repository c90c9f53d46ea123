"""Plain text for the vocabulary and for masked-LM pre-training."""

import random
from collections.abc import Iterator
from pathlib import Path

from tinyrm.pairs import PreferencePair, read_jsonl, read_pairs
from training.data.source import Texts


def load_texts(sources: tuple[Texts, ...], data_dir: Path, seed: int) -> list[str]:
    """All texts of all sources, shuffled together: sources are often sorted inside."""
    rng = random.Random(seed)
    texts = [text for source in sources for text in _sample(_read(source, data_dir, rng), source.max_mb, rng)]
    rng.shuffle(texts)
    return texts


def _read(source: Texts, data_dir: Path, rng: random.Random) -> Iterator[str]:
    path = data_dir / source.path
    if source.kind == "documents":
        return (record["text"] for record in read_jsonl(path))
    return (render_pair(pair, rng) for pair in read_pairs(path))


def render_pair(pair: PreferencePair, rng: random.Random) -> str:
    """Prompt and both responses, in random order and without the verdict.

    Seeing both at once, a masked word of one response can be read off the other: the model learns to line the
    responses up, which is what a comparison needs.
    """
    first, second = rng.sample((pair.chosen, pair.rejected), 2)
    return f"Question: {pair.prompt} Choice 0: {first} Choice 1: {second}"


def _sample(texts: Iterator[str], max_mb: float | None, rng: random.Random) -> list[str]:
    pool = list(texts)
    if max_mb is None:
        return pool
    rng.shuffle(pool)
    room = int(max_mb * 1e6)
    kept = []
    for text in pool:
        if room <= 0:
            break
        kept.append(text)
        room -= len(text)
    return kept
