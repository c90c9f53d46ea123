"""Requests made up from the OpenAPI document, by schemathesis."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from loadtests.chaos.case import PATIENCE_S, Context, Outcome, is_well

CONFIGURATION = Path(__file__).resolve().with_name("schemathesis.toml")
LOGS = Path("runs/chaos")
RESPONSE_WITHIN_S = 20
# One seed's requests become alike, and slow to make: after some hundred nearly all are variations of one refusal.
EXAMPLES_OF_A_SEED = 250
FIRST_SEED = 17
# Thousands of comparisons in one request are the overload's business; here they would only cost time.
MAX_BATCH_ITEMS = 64


async def fuzz(context: Context) -> Outcome:
    """Every check of schemathesis that applies; any 5xx is a failure, and so is an answer that takes too long."""
    outcome = Outcome()
    async with context.service(max_batch_items=MAX_BATCH_ITEMS) as service:
        outcome.rss_before_bytes = service.rss_bytes()
        for seed, examples in enumerate(portions(context.extent.fuzz_examples), start=FIRST_SEED):
            count(await report_of(service.port, examples, seed), outcome)
        outcome.rss_after_bytes = service.rss_bytes()
        await is_well(service, context.payloads, outcome)
    return outcome


def portions(examples: int) -> list[int]:
    """Examples of each seed, for each call with a body."""
    rest = examples % EXAMPLES_OF_A_SEED
    return [EXAMPLES_OF_A_SEED] * (examples // EXAMPLES_OF_A_SEED) + [rest] * bool(rest)


async def report_of(port: int, examples: int, seed: int) -> dict[str, Any]:
    """What schemathesis found with one seed. Raises RuntimeError if it could not run."""
    records = LOGS / f"fuzz-{seed}.json"
    prepare(records)
    code = await schemathesis(port, examples, seed, records)
    if code not in (0, 1):
        raise RuntimeError(f"schemathesis left with {code}: {last_line(records.with_suffix('.log'))}")
    report: dict[str, Any] = json.loads(read(records))
    return report


async def schemathesis(port: int, examples: int, seed: int, records: Path) -> int:
    """Its exit code; the report goes to `records`, what it prints and keeps for itself beside it."""
    # What does not depend on the seed is tried with the first one.
    phases = "examples,coverage,fuzzing" if seed == FIRST_SEED else "fuzzing"
    command = [
        "-m", "schemathesis.cli", "--config-file", str(CONFIGURATION), "run", f"http://127.0.0.1:{port}/openapi.json",
        "--phases", phases, "--max-examples", str(examples), "--seed", str(seed), "--continue-on-failure", "--no-color",
        "--request-timeout", str(PATIENCE_S), "--max-response-time", str(RESPONSE_WITHIN_S),
        "--suppress-health-check", "all", "--report", "json", "--report-json-path", records.name,
    ]  # fmt: skip
    with records.with_suffix(".log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdout=log, stderr=log, cwd=records.parent
        )
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()


def count(report: dict[str, Any], outcome: Outcome) -> None:
    """Cases as requests: those with a failure failed, those without an answer were lost."""
    cases, tally = report["test_cases"], outcome.tally
    tally.sent += cases["generated"]
    tally.failed += cases["with_failures"]
    tally.lost += cases["errored"]
    tally.answered = tally.sent - tally.failed - tally.lost
    for failure in report["failures"]:
        outcome.broken.append(f"{failure['title']}: {failure['count']} at {', '.join(failure['operations'])}")
    outcome.broken += [f"schemathesis: {json.dumps(error)[:300]}" for error in report["errors"]]
    outcome.expect("schemathesis ran to its end", bool(report["complete"]))
    outcome.notes["operations"] = f"{report['operations']['tested']} of {report['operations']['total']}"


def prepare(records: Path) -> None:
    records.parent.mkdir(parents=True, exist_ok=True)
    records.unlink(missing_ok=True)


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def last_line(log: Path) -> str:
    return (read(log).strip().splitlines() or ["it said nothing"])[-1][:300]
