"""The process of an engine: `python -m service.engine.worker DESCRIPTOR`, started by the service.

It shares only a socket with the service, and ends with it. After a crash in native code, a run that never returns or a
memory leak, the service continues and starts another process.
"""

import asyncio
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from service.engine.pinned import open_inherited
from service.engine.rpc import Connection, Message, load_sequences
from service.engine.types import EngineProfile
from service.logs import configure
from service.process import HANDLED
from tinyrm.encoding import Encoding
from tinyrm.engines import Engine, EngineOptions, open_engine, warm_up
from tinyrm.errors import EngineFailed, EngineUnavailable, InvalidBundle
from tinyrm.manifest import Manifest


@dataclass(frozen=True, slots=True)
class EngineProcessOptions:
    """How an engine process runs its bundle.

    peak_gflops_per_s: 0 measures it at start.
    """

    engine: EngineOptions = field(default_factory=EngineOptions)
    peak_gflops_per_s: float = 0.0
    log_level: str = "info"
    log_format: str = "text"

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Self:
        """Make options from the dictionary of `dataclasses.asdict`."""
        return cls(**fields | {"engine": EngineOptions(**fields["engine"])})


class EngineServer:
    """Handles the service's calls: `open` opens the engine of a bundle, later calls run sequences."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._count_logits: Callable[[Sequence[Encoding]], int] = len
        self._pool: ThreadPoolExecutor | None = None

    def handle(self, _: Connection, head: dict[str, Any], body: bytes) -> Message | Awaitable[Message]:
        """Return the engine's profile for `open`, and logits for `lengths`.

        A run blocks the event loop if the engine runs one at a time: this process has nothing else to do, and a thread
        would take longer.
        """
        if "open" in head:
            return {"profile": asdict(self._open(EngineProcessOptions.parse(head["open"]), **head["bundle"]))}, b""
        sequences = load_sequences(head["lengths"], body)
        if self._pool:
            return asyncio.get_running_loop().run_in_executor(self._pool, self._run, sequences)
        return self._run(sequences)

    def _open(
        self, options: EngineProcessOptions, folder: str, manifest: str, descriptors: Mapping[str, int]
    ) -> EngineProfile:
        configure(options.log_level, options.log_format)
        bundle = open_inherited(Path(folder), Manifest.model_validate_json(manifest), descriptors)
        try:
            engine = open_engine(bundle, options.engine)
        except InvalidBundle as error:  # the bundle is valid, but lacks the configured precision
            raise EngineUnavailable(str(error)) from error
        tokens, pad = bundle.manifest.spec.max_tokens, bundle.manifest.special_tokens.pad
        # The first run at a length compiles kernels, where an engine has some for each length; only a second one then
        # shows the rate.
        compiles = engine.info.device == "gpu" or engine.info.length_multiple > 1
        for _ in range(2 if compiles else 1):
            started = time.perf_counter()
            warm_up(engine, tokens, pad)
            tokens_per_s = (tokens + min(64, tokens)) / (time.perf_counter() - started)
        if engine.info.runs_in_flight > 1:
            self._pool = ThreadPoolExecutor(engine.info.runs_in_flight, thread_name_prefix="engine")
        self._engine, self._count_logits = engine, bundle.manifest.count_logits
        peak = options.peak_gflops_per_s or matrix_product_gflops_per_s()
        return EngineProfile(bundle.manifest.identity, engine.info, tokens_per_s, peak)

    def _run(self, sequences: Sequence[Encoding]) -> Message:
        if self._engine is None:
            raise EngineFailed("the engine is not open yet")
        started = time.perf_counter()
        try:
            logits = self._engine.run(sequences)
            seconds = time.perf_counter() - started
            rows = np.asarray(logits, dtype=np.float32).reshape(len(sequences), self._count_logits(sequences))
            return {"seconds": seconds}, rows.tobytes()
        except Exception as error:
            raise EngineFailed(f"{self._engine.info.name}: {type(error).__name__}: {error}") from error


def matrix_product_gflops_per_s() -> float:
    """Return the rate of an fp32 matrix product on this machine: the best of five, about 3 ms each on two cores."""
    size = 640
    rng = np.random.default_rng(0)
    a, b = (rng.random((size, size), dtype=np.float32) for _ in range(2))
    best_s = math.inf
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        best_s = min(best_s, time.perf_counter() - started)
    return 2 * size**3 / best_s / 1e9


def main() -> None:
    # The service ends this process; a Ctrl-C in the terminal reaches both.
    for number in HANDLED:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True, name="parent").start()
    asyncio.run(serve(socket.socket(fileno=int(sys.argv[1]))))
    # A run that does not return must not keep the process.
    sys.stderr.flush()
    os._exit(0)


def end_with_parent(parent: int) -> None:
    """End this process with its parent. The closed socket ends it too, but not during a run that never returns."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


async def serve(link: socket.socket) -> None:
    """Handle the service's calls until it closes the socket."""
    connection = Connection(handle=EngineServer().handle)
    await asyncio.get_running_loop().create_connection(lambda: connection, sock=link)
    await connection.lost


if __name__ == "__main__":
    main()
