"""`tinyrm score`: a file of pairs into a file of scores, from where the last run stopped."""

import asyncio
from argparse import Namespace
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, aclosing
from itertools import islice
from pathlib import Path

from tinyrm.cli.ask import key_of, question_of
from tinyrm.cli.bar import is_shown, say
from tinyrm.cli.lines import Line, count_lines, read_lines
from tinyrm.cli.offline import score_offline
from tinyrm.cli.scored_file import ScoredFile
from tinyrm.client import AsyncClient, CompareReply, ItemError
from tinyrm.client.batches import Bar, in_order, progress_bar
from tinyrm.errors import CallFailed, CallRefused, CallTimedOut, InvalidInput, ServiceBusy

# With pauses of up to 8 s, a service may be away for about half a minute before the command gives up.
MAX_RETRIES = 10

OF_A_SERVICE = {"--url", "--api-key-file", "--timeout-s", "--swap", "--model", "--batch-items", "--concurrency"}
OF_A_CLUSTER = {"--cpus-per-engine", "--gpus-per-engine", "--engines"}
OF_A_BUNDLE = {"--engine", "--precision", "--threads", "--rows-per-part", "--ray"} | OF_A_CLUSTER

Scored = tuple[Line, CompareReply | ItemError]


def score(options: Namespace) -> int:
    """With a service or with a bundle. Raises InvalidInput for an option of the other one."""
    if options.bundle is not None:
        _refuse(options, OF_A_SERVICE, "asks a service, and --bundle needs none: leave one of them out")
        if options.ray is None:
            _refuse(options, OF_A_CLUSTER, "needs --ray")
        else:
            _refuse(options, {"--threads"}, "is --cpus-per-engine with --ray")
        return score_offline(options)
    _refuse(options, OF_A_BUNDLE, "needs --bundle")
    if len(options.pairs) > 1:
        raise InvalidInput("a service is asked for one file at a time; several need --bundle")
    options.pairs = Path(options.pairs[0])
    return score_with_service(options)


def score_with_service(options: Namespace) -> int:
    """0 if every line of the file has a reply, 1 if some have an error."""
    with ScoredFile(options.out) as scored:
        before = scored.lines
        try:
            asyncio.run(_score(options, scored))
        except KeyboardInterrupt:
            say(f"interrupted after {scored.lines} lines; run it again to go on")
            raise
        except CallFailed:
            say(f"stopped after {scored.lines} lines; run it again to go on")
            raise
        say(
            f"{scored.lines} lines in {options.out}, {scored.lines - before} of them new, {scored.errors} with an error"
        )
        return 1 if scored.errors else 0


async def _score(options: Namespace, scored: ScoredFile) -> None:
    lines = remaining(read_lines(options.pairs, question_of(options)), scored)
    client = AsyncClient(
        options.url, key_of(options.api_key_file), timeout_s=options.timeout_s, max_retries=MAX_RETRIES
    )

    async def work(batch: list[Line]) -> list[Scored]:
        return await _score_batch(client, batch)

    async with client:
        results = in_order(
            client.transport, work, lines, batch_items=options.batch_items, concurrency=options.concurrency
        )
        with bar_of(options.pairs, scored.lines) as bar:
            async with aclosing(results):
                async for line, result in results:
                    scored.append(line.record(result))
                    bar.update()


async def _score_batch(client: AsyncClient, batch: list[Line]) -> list[Scored]:
    """A result for each line. Raises CallFailed if one has none, through no fault of its own."""
    items = [line.item for line in batch if line.item is not None]
    answers = client.compare_many(items, batch_items=max(1, len(items)), concurrency=1)
    answered = iter([answer async for answer in answers])
    return [(line, invalid(line) if line.item is None else checked(line, next(answered))) for line in batch]


def invalid(line: Line) -> ItemError:
    return ItemError(type="invalid_request", message=line.wrong)


def checked(line: Line, result: CompareReply | ItemError) -> CompareReply | ItemError:
    """Raises CallFailed for an error that is not the line's: written down, it would stay there in the next run."""
    if not isinstance(result, ItemError):
        return result
    where = f"line {line.index + 1}: {result.message}"
    if result.is_transient:
        raise ServiceBusy(where, kind=result.type)
    if result.type == "deadline_exceeded":
        raise CallTimedOut(f"{where}; give calls more --timeout-s or fewer --batch-items", kind=result.type)
    of_options = result.type == "unknown_model" or (
        result.type == "unknown_domain" and not (line.fields or {}).get("domain")
    )
    if of_options:
        raise CallRefused(where, kind=result.type)
    return result


def remaining(lines: Iterator[Line], scored: ScoredFile) -> Iterator[Line]:
    """The lines that have no result yet. Raises InvalidInput if the results are of another input."""
    done = deque(islice(lines, scored.lines), maxlen=1)
    if scored.last is not None and not (done and done[0].index + 1 == scored.lines and done[0].is_of(scored.last)):
        raise InvalidInput(f"--out holds {scored.lines} lines of another input; name another file, or remove it")
    return lines


def _refuse(options: Namespace, others: set[str], why: str) -> None:
    for option in options.said:
        if option in others:
            raise InvalidInput(f"{option} {why}")


def bar_of(pairs: Path, done: int) -> AbstractContextManager[Bar]:
    shown = is_shown()
    return progress_bar(count_lines(pairs) if shown else None, shown=shown, done=done)
