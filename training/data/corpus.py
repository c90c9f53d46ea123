"""Plain text for the vocabulary and for masked-LM pre-training."""

import random
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tinyrm.pairs import PreferencePair, read_pairs, read_records
from training.data.rows import data_file
from training.data.source import Texts


class Document(BaseModel):
    """A text to learn from. Other fields of a record are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    text: str


def load_texts(sources: tuple[Texts, ...], data_dir: Path, seed: int) -> list[str]:
    """Return the texts of all sources, shuffled together: sources are often sorted inside."""
    rng = random.Random(seed)
    texts: list[str] = []
    for source in sources:
        path = data_file(data_dir, source.path)
        if source.kind == "documents":
            pool = [document.text for document in read_records(path, Document)]
        else:
            pool = [render_pair(pair, rng) for pair in read_pairs(path, ties=True)]
        texts += pool if source.max_mb is None else sample(pool, source.max_mb, rng)
    rng.shuffle(texts)
    return texts


def render_pair(pair: PreferencePair, rng: random.Random) -> str:
    """Return prompt and both responses, in random order and without the verdict.

    With both in one text, a masked word of one response can be copied from the other: the model learns to align the
    responses, as a comparison needs.
    """
    first, second = rng.sample((pair.chosen, pair.rejected), 2)
    return f"Question: {pair.prompt} Choice 0: {first} Choice 1: {second}"


def sample(pool: list[str], max_mb: float, rng: random.Random) -> list[str]:
    """Return a random part of about `max_mb` megabytes."""
    rng.shuffle(pool)
    room = int(max_mb * 1e6)
    kept = []
    for text in pool:
        if room <= 0:
            break
        kept.append(text)
        room -= len(text)
    return kept
