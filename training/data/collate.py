"""Preference pairs -> model inputs."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler
from transformers import DataCollatorWithFlattening
from transformers.trainer_pt_utils import get_length_grouped_indices

from tinyrm.batching import collate
from tinyrm.comparison import Comparison
from tinyrm.encoding import Encoding
from tinyrm.pairs import PreferencePair
from tinyrm.spec import Spec

IGNORED = -100  # torch's cross-entropy skips this label

# Encodings with the chosen response first and second; None is an order that is left out.
Orders = tuple[Encoding | None, Encoding | None]


@dataclass(frozen=True, slots=True)
class PairSampling:
    """The instruction and the orders in which training sees a pair. Each draw follows from `seed` and the pair's index.

    default_rate: share of the pairs with the default domain's instruction.
    prefixes: domain -> instructions to draw from.
    coin_pairs: None shows both orders; otherwise one, by a coin that this many neighbours share.
    """

    spec: Spec
    seed: int
    default_rate: float = 0.0
    prefixes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    coin_pairs: int | None = None

    def instruction(self, index: int, domain: str | None) -> str:
        draw = random.Random(f"{self.seed}:{index}")
        if draw.random() < self.default_rate:
            domain = None
        pool = self.prefixes.get(domain if domain in self.spec.domains else self.spec.default_domain)
        drawn = draw.choice(pool) if pool else None
        return self.spec.resolve("", domain, drawn, or_default=True).instruction

    def orders(self, index: int, encodings: tuple[Encoding, ...]) -> Orders:
        """Return both orders of pair `index`, or the one that the coin selects."""
        first, second = encodings
        if self.coin_pairs is None:
            return first, second
        heads = random.Random(f"{self.seed}:coin:{index // self.coin_pairs}").random() < 0.5
        return (first, None) if heads else (None, second)


class Encodes(Protocol):
    """An encoder, or another way from a comparison to two texts."""

    def encode(self, comparison: Comparison, instruction: str, *, swap: bool = False) -> tuple[Encoding, ...]: ...


class PairDataset(Dataset[Orders]):
    """Pair i -> its two texts: with the chosen response first and second, or of each response alone."""

    def __init__(self, pairs: list[PreferencePair], encoder: Encodes, sampling: PairSampling) -> None:
        self.pairs = pairs
        self.sampling = sampling
        self._encoder = encoder

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Orders:
        pair = self.pairs[index]
        instruction = self.sampling.instruction(index, pair.domain)
        return self.sampling.orders(index, self._encoder.encode(pair.comparison(), instruction, swap=True))

    def lengths(self) -> list[int]:
        """Return the tokens of the longest sequence of each pair. By characters, a quarter of a batch is padding."""
        return [max(len(row.input_ids) for row in self[i] if row) for i in range(len(self))]

    def with_pairs(self, pairs: list[PreferencePair]) -> "PairDataset":
        """Return a dataset of other pairs, encoded in the same way."""
        return PairDataset(pairs, self._encoder, self.sampling)


def characters(pair: PreferencePair) -> int:
    return len(pair.prompt) + len(pair.chosen) + len(pair.rejected)


def longest_first(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    return sorted(pairs, key=characters, reverse=True)


class EpochSampler(Sampler[int]):
    """Pairs of similar length in the same batch, the batches in random order.

    Grouping alone leaves them sorted: long texts, then short ones, over and over. Length goes with the kind of text, so
    the model would be pulled to and fro.

    The first batch of the first epoch holds the longest text: what does not fit in memory fails at once.

    The order follows from seed and epoch only, so a run resumed in a later epoch reads on where it stopped.
    epoch: called for the number of the epoch, because a data loader that skips batches hides its sampler.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, epoch: Callable[[], int]) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        indices = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        size = self.batch_size
        whole = len(indices) // size
        order = torch.randperm(whole, generator=generator).tolist()
        if whole and self.epoch() == 0:
            # The groups begin with the longest text of all.
            order.remove(0)
            order.insert(0, 0)
        return chain(*(indices[i * size : (i + 1) * size] for i in order), indices[whole * size :])


@dataclass(frozen=True, slots=True)
class RowCollator:
    """Items of two texts each -> rows (item 0 first text, item 0 second, item 1 first, ...), without those not shown.

    Of both orders of a pair the chosen response is first, then second; of single responses it is the chosen one, then
    the rejected one. `is_second`, bool [rows], marks the second texts: there the second choice is right, or it is the
    rejected response.

    read: where a row is read: at each occurrence of a token, at its first token, or at all its tokens.
    flat: whether the rows stand one behind the other without padding, [1, tokens] (`DataCollatorWithFlattening`), in
        place of [rows, longest] with an attention_mask.

    `read_at`, int64 [places], are the places that are read, counted through the whole batch; `places`, int64 [rows], is
    how many of them each row has.
    """

    pad_id: int
    read: int | Literal["first", "all"]
    flat: bool = False

    def __call__(self, items: Sequence[Sequence[Encoding | None]]) -> dict[str, Any]:
        shown = [(text, place) for item in items for place, text in enumerate(item) if text]
        texts = [text for text, _ in shown]
        batch = flattened(texts) if self.flat else padded(texts, self.pad_id)
        lengths = [len(text) for text in texts]
        width = batch["input_ids"].shape[1]
        starts = np.cumsum([0, *lengths[:-1]]) if self.flat else np.arange(len(texts)) * width
        read = [self._places(text) for text in texts]
        batch["read_at"] = torch.from_numpy(
            np.concatenate([at + start for at, start in zip(read, starts, strict=True)])
        )
        batch["places"] = torch.tensor([len(at) for at in read])
        batch["is_second"] = torch.tensor([place == 1 for _, place in shown])
        return batch

    def _places(self, text: Encoding) -> NDArray[np.int64]:
        if self.read == "first":
            return np.zeros(1, dtype=np.int64)
        return np.arange(len(text)) if self.read == "all" else np.flatnonzero(text.input_ids == self.read)


def padded(texts: Sequence[Encoding], pad_id: int) -> dict[str, Any]:
    """Return input_ids and attention_mask, int64 [rows, tokens of the longest]."""
    ids, mask = map(torch.from_numpy, collate(texts, pad_id))
    return {"input_ids": ids, "attention_mask": mask}


def flattened(texts: Sequence[Encoding]) -> dict[str, Any]:
    """Return input_ids, position_ids, seq_idx (the row of each token), [1, tokens], and what flash attention takes."""
    flatten = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    batch: dict[str, Any] = flatten([{"input_ids": text.input_ids} for text in texts])
    del batch["labels"]  # of a model that predicts the next token
    return batch
