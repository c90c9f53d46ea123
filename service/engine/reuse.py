"""Identical sequences run once: in a batch, and across requests for as long as the settings keep them.

A reply does not depend on it: logits depend on the ids of their sequence only, never on its batch-mates.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.engine.types import BatchOutput
from tinyrm.encoding import Encoding
from tinyrm.errors import EngineFailed

# Of an entry of the window besides its ids and its logits, on 64-bit CPython.
ENTRY_BYTES = 400

# Where the first of two identical sequences was: in the same batch, or in an earlier or a concurrent one.
Within = Literal["batch", "window"]
OnReuse = Callable[[Within, int, int], None]

Logits = NDArray[np.float32]


def key_of(sequence: Encoding) -> bytes:
    """Return what an engine reads of a sequence: its ids, as `service.engine.rpc.dump_sequences` sends them."""
    return np.asarray(sequence.input_ids).astype(np.int32).tobytes()


class Window:
    """The logits [outputs] of recent sequences by their keys. Beyond its size, the least recently used leave.

    seconds: how long logits stay after they were computed.
    max_bytes: of the ids, the logits, and what Python needs to hold them.
    """

    def __init__(self, seconds: float, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._max_bytes, self._clock = seconds, max_bytes, clock
        self._entries: OrderedDict[bytes, tuple[float, Logits]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Logits | None:
        """Return the logits of a sequence; None if they are not there any more."""
        if (entry := self._entries.get(key)) is None:
            return None
        expires_s, logits = entry
        if self._clock() >= expires_s:
            self._remove(key)
            return None
        self._entries.move_to_end(key)
        return logits

    def add(self, key: bytes, logits: Logits) -> None:
        self._remove(key)
        self._entries[key] = self._clock() + self._seconds, logits.copy()
        self.bytes += size_of(key, logits)
        while self.bytes > self._max_bytes:
            self._remove(next(iter(self._entries)))

    def clear(self) -> None:
        self._entries.clear()
        self.bytes = 0

    def _remove(self, key: bytes) -> None:
        if entry := self._entries.pop(key, None):
            self.bytes -= size_of(key, entry[1])


def size_of(key: bytes, logits: Logits) -> int:
    return len(key) + logits.nbytes + ENTRY_BYTES


class ReusingEngine:
    """Calls an engine with each distinct sequence of a batch once.

    run_engine: such as `EngineProcess.run`.
    count_logits: returns how many logits each row of a batch has.
    window: logits of earlier batches; None: each batch stands alone.
    restarts: returns how many engines have replaced the first one. What a replaced one computed is not used any more.
    on_reuse: called with where the first of the sequences was, and with the number and the tokens of its repeats.

    With a window, sequences that another batch is running now are waited for. If that batch fails or is cancelled,
    they run here: its error is its own.
    """

    def __init__(
        self,
        run_engine: Callable[[Sequence[Encoding]], Awaitable[BatchOutput]],
        count_logits: Callable[[Sequence[Encoding]], int],
        window: Window | None = None,
        *,
        restarts: Callable[[], int] = lambda: 0,
        on_reuse: OnReuse = lambda *_: None,
    ) -> None:
        self._run_engine, self._count_logits = run_engine, count_logits
        self._window, self._restarts, self._on_reuse = window, restarts, on_reuse
        self._restarts_seen = restarts()
        # Each key of a batch in progress -> the logits of that batch by key, empty if it fails.
        self._running: dict[bytes, asyncio.Future[Mapping[bytes, Logits]]] = {}

    def known(self, sequences: Sequence[Encoding]) -> Logits | None:
        """Return the logits of sequences if all of them are in the window, else None. They count as reused."""
        if self._window is None:
            return None
        self._forget_replaced()
        rows: dict[bytes, Logits] = {}
        keys = [key_of(sequence) for sequence in sequences]
        for key in keys:
            if (row := self._window.get(key)) is None:
                return None
            rows[key] = row
        self._on_reuse("window", len(sequences), sum(map(len, sequences)))
        return self._assemble(sequences, keys, rows)

    async def run(self, sequences: Sequence[Encoding]) -> BatchOutput:
        """Return the logits. Raises what the engine raises, and EngineFailed for logits of a wrong shape."""
        if self._window is None and len(sequences) == 1:
            return await self._run_engine(sequences)
        keys = [key_of(sequence) for sequence in sequences]
        distinct = dict(zip(keys, sequences, strict=True))
        if self._window is None and len(distinct) == len(keys):
            return await self._run_engine(sequences)
        rows, ran, seconds = self._look_up(distinct), dict[bytes, Encoding](), 0.0
        while missing := [key for key in distinct if key not in rows]:
            others = {self._running[key] for key in missing if key in self._running}
            own = {key: distinct[key] for key in missing if key not in self._running}
            if own:  # first: another batch may wait for these in turn
                computed, run_s = await self._compute(own)
                rows |= computed
                ran |= own
                seconds += run_s
            if others:
                await asyncio.wait(others)
                rows |= {key: row for other in others for key, row in other.result().items() if key in missing}
                rows |= self._look_up(distinct)  # of a batch that failed, another one may have run the sequences again
        self._count(sequences, keys, ran)
        return BatchOutput(self._assemble(sequences, keys, rows), seconds, list(ran.values()))

    def _look_up(self, distinct: Mapping[bytes, Encoding]) -> dict[bytes, Logits]:
        if self._window is None:
            return {}
        self._forget_replaced()
        found = ((key, self._window.get(key)) for key in distinct)
        return {key: row for key, row in found if row is not None}

    async def _compute(self, sequences: Mapping[bytes, Encoding]) -> tuple[dict[bytes, Logits], float]:
        """Run sequences, and hand their logits on to the batches that wait for them and to the window."""
        ended: asyncio.Future[Mapping[bytes, Logits]] = asyncio.get_running_loop().create_future()
        batch, restarts, valid = list(sequences.values()), self._restarts(), dict[bytes, Logits]()
        if self._window is not None:
            self._running |= dict.fromkeys(sequences, ended)
        try:
            output = await self._run_engine(batch)
            expected = (len(batch), self._count_logits(batch))
            if (shape := np.shape(output.logits)) != expected:
                raise EngineFailed(f"the engine returned logits {shape} instead of {expected}")
            own = (row[: self._count_logits([one])] for row, one in zip(output.logits, batch, strict=True))
            rows = dict(zip(sequences, own, strict=True))
            valid = {key: row for key, row in rows.items() if np.isfinite(row).all()}
        finally:
            for key in sequences:
                self._running.pop(key, None)
            ended.set_result(valid)
        if self._window is not None and restarts == self._restarts():
            for key, row in valid.items():
                self._window.add(key, row)
        return rows, output.seconds

    def _assemble(self, sequences: Sequence[Encoding], keys: Sequence[bytes], rows: Mapping[bytes, Logits]) -> Logits:
        """Return logits [sequences, outputs], with zeros behind those of a smaller set."""
        logits = np.zeros((len(sequences), self._count_logits(sequences)), dtype=np.float32)
        for place, key in enumerate(keys):
            logits[place, : len(rows[key])] = rows[key]
        return logits

    def _count(self, sequences: Sequence[Encoding], keys: Sequence[bytes], ran: Mapping[bytes, Encoding]) -> None:
        """Report the sequences of a batch that did not run."""
        reused, tokens, seen = Counter[Within](), Counter[Within](), set[bytes]()
        for key, sequence in zip(keys, sequences, strict=True):
            if key in ran and key not in seen:
                seen.add(key)
                continue
            within: Within = "batch" if key in ran else "window"
            reused[within] += 1
            tokens[within] += len(sequence)
        for within, count in reused.items():
            self._on_reuse(within, count, tokens[within])

    def _forget_replaced(self) -> None:
        if self._window is not None and self._restarts() != self._restarts_seen:
            self._restarts_seen = self._restarts()
            self._window.clear()
