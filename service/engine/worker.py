"""The engine's own process: `python -m service.engine.worker DESCRIPTOR`, started by the service and ending with it.

It shares nothing with the service but a socket. Whatever happens in here (a crash in native code, a run that never
returns, memory that is never freed), the service outlives it and starts another.
"""

import asyncio
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from service.engine.rpc import Connection, Message, load_sequences
from service.engine.types import EngineProfile
from service.logs import configure
from tinyrm.bundle import Bundle
from tinyrm.encoding import Encoding
from tinyrm.engines import Engine, EngineOptions, open_engine, warm_up
from tinyrm.errors import EngineFailed, EngineUnavailable, InvalidBundle


@dataclass(frozen=True, slots=True)
class EngineProcessOptions:
    """What an engine process runs, and how.

    model: folder of the bundle.
    identity: name@revision that the folder must hold.
    peak_gflops_per_s: 0 measures it.
    """

    model: str
    identity: str
    engine: EngineOptions = field(default_factory=EngineOptions)
    peak_gflops_per_s: float = 0.0
    log_level: str = "info"
    log_format: str = "text"

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Self:
        """Make one from what `dataclasses.asdict` returned."""
        return cls(**fields | {"engine": EngineOptions(**fields["engine"])})


class EngineServer:
    """Opens a bundle's engine when it is called with options, and runs sequences from then on."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._pool: ThreadPoolExecutor | None = None

    def handle(self, _: Connection, head: dict[str, Any], body: bytes) -> Message | Awaitable[Message]:
        """Reply to `open` with the engine's profile, and to `lengths` with logits.

        One run at a time blocks the event loop: nothing else happens in this process, and a thread would take longer.
        """
        if "open" in head:
            return {"profile": asdict(self._open(EngineProcessOptions.parse(head["open"])))}, b""
        sequences = load_sequences(head["lengths"], body)
        if self._pool:
            return asyncio.get_running_loop().run_in_executor(self._pool, self._run, sequences)
        return self._run(sequences)

    def _open(self, options: EngineProcessOptions) -> EngineProfile:
        configure(options.log_level, options.log_format)
        bundle = Bundle.open(Path(options.model))
        manifest = bundle.manifest
        if manifest.identity != options.identity:
            raise EngineUnavailable(
                f"{options.model} holds {manifest.identity} now, and {options.identity} is served; reload the service"
            )
        try:
            engine = open_engine(bundle, options.engine)
        except InvalidBundle as error:  # the bundle is valid, but lacks the precision that is asked for
            raise EngineUnavailable(str(error)) from error
        tokens = manifest.spec.max_tokens
        warm_up(engine, tokens, manifest.special_tokens.pad)
        started = time.perf_counter()
        warm_up(engine, tokens, manifest.special_tokens.pad)
        tokens_per_s = (tokens + min(64, tokens)) / (time.perf_counter() - started)
        if engine.info.runs_in_flight > 1:
            self._pool = ThreadPoolExecutor(engine.info.runs_in_flight, thread_name_prefix="engine")
        self._engine = engine
        peak = options.peak_gflops_per_s or matrix_product_gflops_per_s()
        return EngineProfile(manifest.identity, engine.info, tokens_per_s, peak)

    def _run(self, sequences: Sequence[Encoding]) -> Message:
        if self._engine is None:
            raise EngineFailed("the engine is not open yet")
        started = time.perf_counter()
        try:
            logits = self._engine.run(sequences)
            seconds = time.perf_counter() - started
            return {"seconds": seconds}, np.asarray(logits, dtype=np.float32).reshape(len(sequences), 2).tobytes()
        except Exception as error:
            raise EngineFailed(f"{self._engine.info.name}: {type(error).__name__}: {error}") from error


def matrix_product_gflops_per_s() -> float:
    """Return what this machine's matrix products reach: the best of a few, about 10 ms each on two cores, in fp32."""
    size = 1024
    rng = np.random.default_rng(0)
    a, b = (rng.random((size, size), dtype=np.float32) for _ in range(2))
    best_s = math.inf
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        best_s = min(best_s, time.perf_counter() - started)
    return 2 * size**3 / best_s / 1e9


def main() -> None:
    # The service decides when to leave: a Ctrl-C meant for it reaches this process as well.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True, name="parent").start()
    asyncio.run(serve(socket.socket(fileno=int(sys.argv[1]))))
    # A run that does not return must not keep the process.
    sys.stderr.flush()
    os._exit(0)


def _end_with(parent: int) -> None:
    """End this process with its parent. The closed socket shows that too, but not during a run that never returns."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


async def serve(link: socket.socket) -> None:
    """Reply to the service's calls until it closes its end."""
    connection = Connection(handle=EngineServer().handle)
    await asyncio.get_running_loop().create_connection(lambda: connection, sock=link)
    await connection.lost


if __name__ == "__main__":
    main()
