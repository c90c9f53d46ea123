"""Score shards on a cluster with Ray Data: a pool of actors, each with one engine, that write their own tables.

Actors receive the positions of shards and return counts. An actor that dies is replaced and its shard is scored again,
into the file of the same name. Bundle, sources and output folder must be the same paths on every machine.
"""

import dataclasses
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import ray
import ray.data
from ray.exceptions import RayError

from tinyrm.bulk.bundle import BundleJob, ShardScorer
from tinyrm.bulk.parquet import ShardStats, read_stats, write
from tinyrm.bulk.progress import Progress
from tinyrm.bulk.sources import Shard
from tinyrm.engines.base import usable_cpus
from tinyrm.errors import EngineFailed, InvalidInput, TinyRMError, from_type
from tinyrm.manifest import Manifest

LOCAL = "local"
# Each block of shards is an object in Ray's store; this bounds their number for a set of any size.
MAX_BLOCKS = 4096
CONNECT_TIMEOUT_S = 10
# What Ray raises, as a plain Exception, if its own node needs longer than the 30 s that no option changes.
TOO_SLOW = "The current node timed out during startup"
HINT = " (if the cluster requires a token: RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH)"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray cluster, and how many engines use it.

    address: `local` starts Ray on this machine, `auto` finds a running cluster.
    engines: how many; None for as many as the cluster has room for.
    """

    address: str = LOCAL
    cpus_per_engine: int = 1
    gpus_per_engine: float = 0.0
    engines: int | None = None

    def room(self) -> int:
        """Return how many engines the cluster's machines have room for, including what other jobs use."""
        engines = 0
        for node in ray.nodes():
            if node["Alive"]:
                there = node["Resources"]
                fit = there.get("CPU", 0) // self.cpus_per_engine
                if self.gpus_per_engine:
                    fit = min(fit, there.get("GPU", 0) // self.gpus_per_engine)
                engines += int(fit)
        return engines

    def size(self, shards: int) -> int:
        """Return how many engines to start. Raises InvalidInput without room; Ray would wait for ever."""
        room, each = self.room(), f"{self.cpus_per_engine} CPUs and {self.gpus_per_engine:g} GPUs"
        if (self.engines or 1) > room:
            there = ray.cluster_resources()
            raise InvalidInput(
                f"--ray: no room for {self.engines or 1} engines of {each} each; the cluster has room for {room}, with "
                f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs in all: use less, or add machines"
            )
        return max(1, min(self.engines or room, shards))


class RayRunner:
    """Scores on a cluster; connected to it while the runner is entered."""

    def __init__(self, job: BundleJob, cluster: Cluster) -> None:
        self._job, self.cluster = job, cluster

    def __enter__(self) -> Self:
        bundle = self._job.open_bundle()
        self._job.row_encoder(bundle)  # an unknown domain fails before Ray is started
        self.manifest: Manifest = bundle.manifest
        _connect(self.cluster.address)
        try:
            self.cluster.size(1)
            job = dataclasses.replace(self._job, threads=self.cluster.cpus_per_engine, model=bundle.manifest.identity)
            # One machine chooses the engine; the others start the same one or fail.
            task = ray.remote(_choose_engine).options(
                num_cpus=self.cluster.cpus_per_engine, num_gpus=self.cluster.gpus_per_engine
            )
            with _named_failures():
                self.engine = str(_checked(ray.get(task.remote(job)))["engine"])
            self._job = dataclasses.replace(job, engine=self.engine)
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def score(self, shards: Iterable[Shard], progress: Progress) -> Iterator[ShardStats]:  # noqa: ARG002
        """Yield the counts of each written shard. Raises the error of the first actor that fails."""
        items = [dataclasses.asdict(shard) for shard in shards]
        if not items:
            return
        engines = self.cluster.size(len(items))
        with _named_failures():
            shards_in = ray.data.from_items(items, override_num_blocks=min(len(items), MAX_BLOCKS))
            replies = shards_in.map(
                _Actor,
                fn_constructor_args=(self._job,),
                compute=ray.data.ActorPoolStrategy(size=engines),
                num_cpus=self.cluster.cpus_per_engine,
                num_gpus=self.cluster.gpus_per_engine,
            )
            for reply in replies.iter_rows():
                yield ShardStats(**_checked(reply))


class _Actor:
    """Keeps its engine. Returns errors as replies; Ray would turn a raised one into a traceback."""

    def __init__(self, job: BundleJob) -> None:
        self._job = job
        self._scorer: ShardScorer | None = None

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        shard = Shard(**item)

        def score() -> dict[str, Any]:
            # The file exists already if an actor died after writing it and before its reply.
            stats = read_stats(self._job.out, shard)
            if stats is None:
                if self._scorer is None:
                    self._scorer = _open(self._job)
                table, stats = self._scorer.score(shard, self._scorer.read(shard))
                write(self._job.out, shard, table, stats)
            return dataclasses.asdict(stats)

        return _reply(score)


def _choose_engine(job: BundleJob) -> dict[str, Any]:
    def engine() -> dict[str, Any]:
        if not job.out.is_dir():
            raise InvalidInput(f"--out {job.out} does not exist on {os.uname().nodename}: all machines must share it")
        return {"engine": _open(job).engine}

    return _reply(engine)


def _open(job: BundleJob) -> ShardScorer:
    os.environ["RAYON_NUM_THREADS"] = str(job.threads)  # the tokenizer reads it when it starts its threads
    return ShardScorer(job)


def _reply(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return work()
    except (TinyRMError, OSError, ImportError) as error:
        kind = error.type if isinstance(error, TinyRMError) else TinyRMError.type
        return {"error_type": kind, "error": str(error)}


def _checked(reply: dict[str, Any]) -> dict[str, Any]:
    if "error_type" in reply:
        raise from_type(reply["error_type"], reply["error"])
    return reply


@contextmanager
def _named_failures() -> Iterator[None]:
    """Turn Ray's own failures into one line; the last line of their text names the cause."""
    try:
        yield
    except RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise EngineFailed(f"Ray: {type(error).__name__}: {lines[-1] if lines else 'no further message'}") from error


def _connect(address: str) -> None:
    """Connect to the cluster, or start one. Raises InvalidInput, or EngineFailed if Ray starts too slowly."""
    _check_address(address)
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # workers use the environment of their machine
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # of a cluster that is started here; another one has its own setting
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address == LOCAL:
            ray.init("local", num_cpus=usable_cpus(), include_dashboard=False, **quiet)
        else:
            ray.init(address, **quiet)
    except Exception as error:
        if TOO_SLOW in str(error):
            raise EngineFailed(
                "Ray did not start on this machine within its own limit of 30 s: run the command again when the "
                "machine is less busy, or without --ray"
            ) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise InvalidInput(
            f"--ray {address}: {' ... '.join(dict.fromkeys((lines[0], lines[-1])))}{HINT if address != LOCAL else ''}"
        ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _check_address(address: str) -> None:
    """Raise InvalidInput if nothing listens at the address; Ray would try for ever to reach it."""
    if address in (LOCAL, "auto"):
        return
    if address.startswith("ray://"):
        raise InvalidInput(
            f"--ray {address}: Ray Data does not run through Ray's client; run the command on a machine of the "
            "cluster, with --ray auto, or as a job"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidInput(f"--ray {address}: auto, or host:6379; leave the address out to use this machine")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise InvalidInput(
            f"--ray {address}: nothing answers there ({error}); is it the address of Ray's head?"
        ) from error
