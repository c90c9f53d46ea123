"""`tinyrm score`: score files of pairs with a service into JSON lines, or with a bundle into Parquet."""

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from tinyrm.bulk.jsonl import STDOUT
from tinyrm.bulk.progress import Progress, Total, say
from tinyrm.bulk.service import ServiceJob
from tinyrm.cli.calls import Service
from tinyrm.cli.extras import missing, show_fetching
from tinyrm.client import AsyncClient
from tinyrm.client.batches import BATCH_ITEMS, CONCURRENCY
from tinyrm.client.calls import CompareOptions
from tinyrm.command_line import Count, Flag, Positive, Seconds, Share, option, parse
from tinyrm.comparison import SwapMode
from tinyrm.errors import CallFailed, InvalidInput
from tinyrm.reasoning import Reasoning

if TYPE_CHECKING:
    from tinyrm.bulk.bundle import BundleJob
    from tinyrm.bulk.job import Runner

# With random pauses of up to 8 s, a service may be unreachable for most of a minute before the command stops.
MAX_RETRIES = 15
CLUSTER_ONLY = ("--cpus-per-engine", "--gpus-per-engine", "--engines")


@dataclass(frozen=True, kw_only=True)
class ServiceOptions(Service):
    """With a service."""

    timeout_s: Seconds = 300.0
    """Limit of one call, with its repetitions."""
    swap: Annotated[SwapMode | None, option("on|off|auto")] = None
    """on: score both orders. off: one order, half the cost. auto: the second only if the first is not decisive."""
    model: Annotated[str | None, option("NAME")] = None
    """Name or name@revision; the service refuses a model that it does not serve."""
    batch_items: Positive = BATCH_ITEMS
    """Pairs in one call."""
    concurrency: Positive = CONCURRENCY
    """Calls at the same time."""


@dataclass(frozen=True, kw_only=True)
class BundleOptions:
    """With a bundle, without a service."""

    bundle: Annotated[str | None, option("BUNDLE")] = None
    """Folder of the bundle, on a cluster the same path on every machine; or hf://ORG/NAME@COMMIT, or
    https://HOST/NAME.tar.gz#sha256=HEX."""
    engine: str = "auto"
    """Engine that runs the model; auto selects the fastest one that starts here."""
    precision: str = "fp32"
    """One of the bundle's precisions."""
    threads: Count = 0
    """Threads of the engine; 0 for all processors."""
    rows_per_part: Positive = 2048
    """Rows of one Parquet file; after a kill, at most this many are scored again."""
    ray: Annotated[tuple[str, ...] | None, option("[ADDRESS]")] = None
    """Use a Ray cluster: auto, or host:6379; without an address, Ray on this machine. Bundle, pairs and --out must be
    the same paths on every machine."""
    cpus_per_engine: Positive = 1
    """Processors and threads of one engine on a cluster."""
    gpus_per_engine: Share = 0.0
    """GPUs of one engine on a cluster."""
    engines: Annotated[Positive | None, option("N")] = None
    """Engines on a cluster; by default as many as it has room for."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score files of pairs. Run the same command again to continue where it stopped.

    The files hold JSON lines with prompt, and response_a and response_b, or chosen (which is A) and rejected. A line's
    own domain, instruction and swap take precedence over the options.

    With a service, --out gets each line with one more field, tinyrm: {"index": number of the line from 0, "options":
    those of the command, "reply": ...} or {..., "error": ...}. It is continued only with the same pairs, options and
    model. Blank lines at the end are left out.

    With --bundle no service is needed: any number of files, JSON lines or Parquet, are scored on this machine or on a
    Ray cluster, into a folder of Parquet files: always in both orders, or each response by itself if the bundle reads
    one response.

    Examples:
      tinyrm score pairs.jsonl --out scored.jsonl
      cat pairs.jsonl | tinyrm score - --out - | jq .tinyrm.reply.probability_a
      tinyrm score "data/*.parquet" --bundle models/mine --out scores
      tinyrm score pairs.jsonl --bundle hf://ORG/NAME@COMMIT --out scores --ray auto
    """

    pairs: Annotated[Positional[tuple[str, ...]], option("PAIRS ...")]
    """JSON lines, plain or compressed (.gz, .xz), or - for standard input; with --bundle also Parquet, folders, globs,
    and addresses such as s3:// and hf://datasets/."""
    out: Annotated[str, arg(metavar="OUT")]
    """File to write or to continue, or - for standard output; with --bundle a folder."""
    domain: Annotated[str | None, option("NAME")] = None
    """One of the model's domains; each has its own instruction."""
    instruction: Annotated[str | None, option("TEXT")] = None
    """Replaces the domain's instruction."""
    reasoning: Annotated[Reasoning | None, option("keep|drop")] = None
    """drop: reasoning before a response, between tags such as <think>, is not judged. keep: it is."""
    json: Flag = False
    """Print the counts as JSON on standard output at the end."""
    service: Annotated[ServiceOptions, arg(name="")] = field(default_factory=ServiceOptions)
    local: Annotated[BundleOptions, arg(name="")] = field(default_factory=BundleOptions)


def main(words: Sequence[str]) -> int:
    """Score, and return 0 if every row has a score, 1 if some have an error.

    Raises InvalidInput, CallFailed, EngineError.
    """
    options = parse(Score, words, prog="tinyrm score")
    check_combination(options)
    bundle = options.local.bundle
    unit = "rows" if bundle else "lines"
    with Progress() as progress:
        try:
            total = with_bundle(options, bundle, progress) if bundle else with_service(options, progress)
        except (KeyboardInterrupt, CallFailed) as error:
            how = "interrupted" if isinstance(error, KeyboardInterrupt) else "stopped"
            say(f"{how} after {progress.rows} {unit}; run it again to continue")
            raise
    if options.json:
        print(json.dumps({"out": options.out, **asdict(total)}))
    say(f"{total.rows} {unit} in {options.out}, {total.new_rows} of them new, {total.errors} with an error")
    if total.flops:
        seconds, gflop = max(total.seconds, 1e-9), total.flops / 1e9
        say(
            f"{seconds:.1f} s, {total.new_rows / seconds:.1f} pairs/s, {total.tokens / seconds:.0f} tokens/s, "
            f"{gflop:.1f} GFLOP, {gflop / seconds:.1f} GFLOP/s"
        )
    return 1 if total.errors else 0


def check_combination(options: Score) -> None:
    """Raise InvalidInput for options that contradict each other."""
    of_service, of_bundle, local = changed(options.service), changed(options.local), options.local
    of_cluster = [name for name in of_bundle if name in CLUSTER_ONLY]
    scores_in_bundle, uses_ray = local.bundle is not None, local.ray is not None
    rules: tuple[tuple[object, str], ...] = (
        (not options.pairs, "no file of pairs is named"),
        (
            options.json and options.out in STDOUT,
            f"--json prints counts where --out {options.out} prints scores: leave one of them out",
        ),
        (of_bundle and not scores_in_bundle, f"{first(of_bundle)} needs --bundle"),
        (len(options.pairs) > 1 and not scores_in_bundle, "a service scores one file at a time; several need --bundle"),
        (
            of_service and scores_in_bundle,
            f"{first(of_service)} is for a service, and --bundle needs none: leave one of them out",
        ),
        (of_cluster and not uses_ray, f"{first(of_cluster)} needs --ray"),
        ("--threads" in of_bundle and uses_ray, "--threads is --cpus-per-engine with --ray"),
    )
    for is_wrong, instead in rules:
        if is_wrong:
            raise InvalidInput(instead)


def first(names: list[str]) -> str:
    return names[0] if names else ""


def changed(options: Any) -> list[str]:
    """Return the options that differ from their defaults."""
    defaults = type(options)()
    return [
        f"--{option.name.replace('_', '-')}"
        for option in fields(options)
        if getattr(options, option.name) != getattr(defaults, option.name)
    ]


def with_service(options: Score, progress: Progress) -> Total:
    """Score one file with a service. Raises InvalidInput, CallFailed."""
    service = options.service
    defaults = CompareOptions(
        domain=options.domain,
        instruction=options.instruction,
        swap=service.swap,
        model=service.model,
        reasoning=options.reasoning,
    )
    job = ServiceJob(options.pairs[0], options.out, defaults, service.batch_items, service.concurrency)
    client = AsyncClient(service.url, service.api_key(), timeout_s=service.timeout_s, max_retries=MAX_RETRIES)
    return asyncio.run(job.run(client, progress))


def with_bundle(options: Score, bundle: str, progress: Progress) -> Total:
    """Score files with a bundle, here or on a cluster. Raises InvalidInput, EngineError."""
    local = options.local
    if "-" in (options.out, *options.pairs):
        raise InvalidInput("--bundle reads files, some of them twice, and writes a folder: name them, instead of -")
    if re.match(r"[a-z0-9]+:/", options.out):
        raise InvalidInput(f"--out {options.out}: must be a folder of this machine, or one that all machines share")
    try:
        from tinyrm.bulk import job as jobs
        from tinyrm.bulk.bundle import BundleJob
        from tinyrm.places import FETCHING, find
    except ModuleNotFoundError as error:
        raise missing("--bundle", error, "local,bulk") from error
    show_fetching(FETCHING)
    job = BundleJob(
        bundle=find(bundle).absolute(),
        out=Path(options.out).absolute(),
        engine=local.engine,
        precision=local.precision,
        threads=local.threads,
        domain=options.domain,
        instruction=options.instruction,
        reasoning=options.reasoning or "keep",
    )
    runner: Runner = jobs.LocalRunner(job) if local.ray is None else on_cluster(job, local, *local.ray)
    return jobs.run(job, options.pairs, local.rows_per_part, runner, progress)


def on_cluster(job: "BundleJob", local: BundleOptions, address: str = "local", *others: str) -> "Runner":
    """Return a runner on the Ray cluster at `address`. Raises InvalidInput."""
    if others:
        raise InvalidInput(f"--ray takes one address, not also {others[0]!r}")
    try:
        from tinyrm.bulk.ray_runner import Cluster, RayRunner
    except ModuleNotFoundError as error:
        raise missing("--ray", error, "local,ray") from error
    return RayRunner(job, Cluster(address, local.cpus_per_engine, local.gpus_per_engine, local.engines))
