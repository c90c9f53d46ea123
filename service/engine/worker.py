"""The engine's own process: `python -m service.engine.worker`, started by the service and ending with it.

It shares nothing with the service but a socket. Whatever happens in here (a crash in native code, a run that never
returns, memory that is never given back), the service outlives it and starts another.
"""

import argparse
import math
import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from service.engine import messages
from service.logs import configure
from tinyrm.bundle import Bundle
from tinyrm.engines import Engine, EngineInfo, open_engine, warm_up
from tinyrm.engines import EngineOptions as RunOptions
from tinyrm.errors import TinyRMError


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What to run, and how. `peak_gflops_per_s`: 0 measures it."""

    model: str
    engine: str = "auto"
    precision: str = "fp32"
    threads: int = 0
    streams: int = 1
    peak_gflops_per_s: float = 0.0
    log_level: str = "info"
    log_format: str = "text"

    def command(self, descriptor: int) -> list[str]:
        options = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(self).items()]
        return [sys.executable, "-m", "service.engine.worker", f"--socket={descriptor}", *options]


@dataclass(frozen=True, slots=True)
class Greeting:
    """What the engine is, and what was measured when it ran first."""

    info: EngineInfo
    tokens_per_s: float
    peak_gflops_per_s: float

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Self:
        return cls(**fields | {"info": EngineInfo(**fields["info"])})


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m service.engine.worker", description=__doc__)
    parser.add_argument("--socket", type=int, required=True, help="descriptor of the socket to the service")
    for name, default in asdict(EngineOptions(model="")).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    arguments = vars(parser.parse_args())
    # The service decides when to leave: a Ctrl-C meant for it reaches this process as well.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=arguments.pop("socket")) as connection:
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True, name="parent").start()
        options = EngineOptions(**arguments)
        configure(options.log_level, options.log_format)
        return serve(connection, options)


def _end_with(parent: int) -> None:
    """The closed socket tells that the service has gone, but nobody reads it during a run that never returns."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def serve(connection: socket.socket, options: EngineOptions) -> int:
    """Greet, then answer until the service closes its end. 3 if the engine could not be started."""
    try:
        bundle = Bundle.open(Path(options.model))
        engine = open_engine(bundle, RunOptions(options.engine, options.precision, options.threads, options.streams))
        hello = _greeting(engine, bundle, options)
    except TinyRMError as error:
        connection.sendall(messages.message({"error": error.type, "message": str(error)}))
        return 3
    connection.sendall(messages.message(asdict(hello)))
    Worker(connection, engine).run()
    return 0


def _greeting(engine: Engine, bundle: Bundle, options: EngineOptions) -> Greeting:
    manifest = bundle.manifest
    tokens = manifest.spec.max_tokens
    warm_up(engine, tokens, manifest.special_tokens.pad)
    started = time.perf_counter()
    warm_up(engine, tokens, manifest.special_tokens.pad)
    rate = (tokens + min(64, tokens)) / (time.perf_counter() - started)
    peak = options.peak_gflops_per_s or matrix_product_gflops_per_s()
    return Greeting(engine.info, rate, peak)


class Worker:
    """Reads requests, runs them, writes replies."""

    def __init__(self, connection: socket.socket, engine: Engine) -> None:
        self._connection, self._engine = connection, engine
        self._incoming = connection.makefile("rb")
        self._writing = threading.Lock()

    def run(self) -> None:
        """Until the service closes its end. One run at a time needs no thread beside this one."""
        runs = self._engine.info.runs_in_flight
        pool = ThreadPoolExecutor(runs, thread_name_prefix="engine") if runs > 1 else None
        while payload := self._read():
            if pool:
                pool.submit(self._answer, payload)
            else:
                self._answer(payload)
        if pool:
            # A run that does not return must not keep the process.
            sys.stderr.flush()
            os._exit(0)

    def _answer(self, payload: bytes) -> None:
        head, body = messages.parse(payload)
        readings = messages.readings_of(head["lengths"], body)
        started = time.perf_counter()
        try:
            logits = self._engine.run(readings)
            answer = np.asarray(logits, dtype=np.float32).reshape(len(readings), 2)
            reply = {"number": head["number"], "seconds": time.perf_counter() - started}
            frame = messages.message(reply, answer.tobytes())
        except Exception as error:  # noqa: BLE001  # carried to the service, which fails this run alone
            why = f"{self._engine.info.name}: {type(error).__name__}: {error}"
            frame = messages.message({"number": head["number"], "error": why})
        with self._writing, suppress(ConnectionError):  # the next read ends this process
            self._connection.sendall(frame)

    def _read(self) -> bytes:
        """The next payload; empty when the service has gone."""
        length = self._exactly(messages.LENGTH.size)
        return self._exactly(messages.LENGTH.unpack(length)[0]) if length else b""

    def _exactly(self, size: int) -> bytes:
        try:
            received = self._incoming.read(size)
        except ConnectionError:  # the service left with something still on its way
            return b""
        return received if len(received) == size else b""


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


if __name__ == "__main__":
    sys.exit(main())
