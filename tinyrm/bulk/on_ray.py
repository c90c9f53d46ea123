"""Parts on a cluster, through Ray Data: a pool of actors with an engine each, and their own tables in the folder.

Only places of parts travel out and counts travel back. An actor that dies is replaced and its part scored again, into
the file of the same name. Bundle, sources and folder have to be the same paths on every machine.
"""

import dataclasses
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import ray
import ray.data
from ray.exceptions import RayError

from tinyrm.bulk.job import Progress
from tinyrm.bulk.output import Done, done, write
from tinyrm.bulk.scoring import Job, PartScorer
from tinyrm.bulk.sources import Part
from tinyrm.engines.base import usable_cpus
from tinyrm.errors import EngineFailed, InvalidInput, TinyRMError, from_type
from tinyrm.manifest import Manifest

LOCAL = "local"
# Each block of parts is an object in Ray's store: a set of any size is a bounded number of them.
MOST_BLOCKS = 4096
CONNECT_TIMEOUT_S = 10
HINT = " (if the cluster asks for a token: RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH)"


@dataclass(frozen=True, slots=True)
class Cluster:
    """address: `local` starts Ray on this machine, `auto` finds one. engines: None for as many as there is room for."""

    address: str = LOCAL
    cpus_per_engine: int = 1
    gpus_per_engine: float = 0.0
    engines: int | None = None

    def room(self) -> int:
        """Engines that the cluster's machines have room for, whether or not others work there too."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(self._on_one(node) for node in nodes)

    def size(self, parts: int) -> int:
        """Engines to start. Raises InvalidInput if Ray would wait for ever for machines that are not there."""
        room, each = self.room(), f"{self.cpus_per_engine} CPUs and {self.gpus_per_engine:g} GPUs"
        if (self.engines or 1) > room:
            there = ray.cluster_resources()
            raise InvalidInput(
                f"--ray: no room for {self.engines or 1} engines of {each} each; the cluster has room for {room}, with "
                f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs in all: ask for less, or add machines"
            )
        return max(1, min(self.engines or room, parts))

    def _on_one(self, resources: dict[str, float]) -> int:
        fits = resources.get("CPU", 0) // self.cpus_per_engine
        return int(min(fits, resources.get("GPU", 0) // self.gpus_per_engine) if self.gpus_per_engine else fits)


class OnRay:
    """Connected while it is entered."""

    def __init__(self, job: Job, cluster: Cluster) -> None:
        self._job, self.cluster = job, cluster

    def __enter__(self) -> Self:
        bundle = self._job.open_bundle()
        self._job.row_encoder(bundle)  # a domain that is not there is told before anything is started
        self.manifest: Manifest = bundle.manifest
        _connect(self.cluster.address)
        try:
            self.cluster.size(1)
            job = dataclasses.replace(self._job, threads=self.cluster.cpus_per_engine, model=bundle.manifest.identity)
            # One machine says which engine it is, and the others start that one or fail.
            self.engine = str(self._engine_of(job))
            self._job = dataclasses.replace(job, engine=self.engine)
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        ray.shutdown()

    def score(self, parts: Iterable[Part], progress: Progress) -> Iterator[Done]:  # noqa: ARG002
        """Each part that was written, as it is. Raises what the first actor to fail has raised."""
        items = [dataclasses.asdict(part) for part in parts]
        if not items:
            return
        engines = self.cluster.size(len(items))
        with _told():
            answers = ray.data.from_items(items, override_num_blocks=min(len(items), MOST_BLOCKS)).map(
                _Actor, fn_constructor_args=(self._job,), compute=ray.data.ActorPoolStrategy(size=engines),
                num_cpus=self.cluster.cpus_per_engine, num_gpus=self.cluster.gpus_per_engine,
            )  # fmt: skip
            for answer in answers.iter_rows():
                yield Done(**_checked(answer))

    def _engine_of(self, job: Job) -> Any:
        with _told():
            task = ray.remote(_engine_of).options(
                num_cpus=self.cluster.cpus_per_engine, num_gpus=self.cluster.gpus_per_engine
            )
            return _checked(ray.get(task.remote(job)))["engine"]


class _Actor:
    """Keeps what it opened. What it raises comes back as an answer: through Ray it would be a traceback of Ray's."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._scorer: PartScorer | None = None

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        return _answer(lambda: dataclasses.asdict(self._score(Part(**item))))

    def _score(self, part: Part) -> Done:
        # There already if an actor died between its writing and its answer.
        if (counts := done(self._job.out, part)) is not None:
            return counts
        if self._scorer is None:
            self._scorer = _opened(self._job)
        table, counts = self._scorer.table(part, self._scorer.encoded(part))
        write(self._job.out, part, table, counts)
        return counts


def _engine_of(job: Job) -> dict[str, Any]:
    def engine() -> dict[str, Any]:
        if not job.out.is_dir():
            raise InvalidInput(f"--out {job.out} is not there on {os.uname().nodename}: all machines have to share it")
        return {"engine": _opened(job).engine}

    return _answer(engine)


def _opened(job: Job) -> PartScorer:
    os.environ["RAYON_NUM_THREADS"] = str(job.threads)  # the tokenizer's, read when it first starts them
    return PartScorer(job)


def _answer(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return work()
    except (TinyRMError, OSError, ImportError) as error:
        kind = error.type if isinstance(error, TinyRMError) else TinyRMError.type
        return {"error_type": kind, "error": str(error)}


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error_type" in answer:
        raise from_type(answer["error_type"], answer["error"])
    return answer


@contextmanager
def _told() -> Iterator[None]:
    """Ray's own failures in one line; what they say last is what happened."""
    try:
        yield
    except RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise EngineFailed(f"Ray: {type(error).__name__}: {lines[-1] if lines else 'it says nothing more'}") from error


def _connect(address: str) -> None:
    """Raises InvalidInput if no cluster is there."""
    _refuse_silence(address)
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # workers have the environment of their machine
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address == LOCAL:
            ray.init("local", num_cpus=usable_cpus(), include_dashboard=False, **quiet)
        else:
            ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError, ImportError) as error:  # ConnectionError is an OSError
        said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise InvalidInput(
            f"--ray {address}: {' ... '.join(dict.fromkeys((said[0], said[-1])))}{HINT if address != LOCAL else ''}"
        ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _refuse_silence(address: str) -> None:
    """Ray itself would try for ever to reach an address where nothing listens. Raises InvalidInput."""
    if address in (LOCAL, "auto"):
        return
    if address.startswith("ray://"):
        raise InvalidInput(
            f"--ray {address}: Ray Data does not run through Ray's client; run the command on one of its machines, "
            "with --ray auto, or as a job of it"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidInput(f"--ray {address}: auto, or host:6379; without an address for this machine")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise InvalidInput(f"--ray {address}: nothing answers there ({error}); is it Ray's head?") from error
