"""Requests made from the OpenAPI document, by schemathesis."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from loadtests.chaos.case import CLIENT_TIMEOUT_S, Context, Outcome, expect_well

CONFIGURATION = Path(__file__).resolve().with_name("schemathesis.toml")
LOGS = Path("runs/chaos")
REPLY_WITHIN_S = 20
# The requests of one seed become alike, and slow to make: after some hundred, nearly all are variations of one refusal.
EXAMPLES_OF_A_SEED = 250
FIRST_SEED = 17
# Thousands of comparisons in one request are the overload's business; here they would only cost time.
MAX_BATCH_ITEMS = 64


async def fuzz(context: Context) -> Outcome:
    """Every check of schemathesis that applies; any 5xx is a failure, and so is a reply that takes too long."""
    outcome = Outcome()
    full_seeds, rest = divmod(context.extent.fuzz_examples, EXAMPLES_OF_A_SEED)
    async with context.service(max_batch_items=MAX_BATCH_ITEMS) as service:
        outcome.rss_before_bytes = service.rss_bytes()
        for seed, examples in enumerate([EXAMPLES_OF_A_SEED] * full_seeds + [rest] * bool(rest), start=FIRST_SEED):
            count(await run_schemathesis(service.port, examples, seed), outcome)
        outcome.rss_after_bytes = service.rss_bytes()
        await expect_well(service, context.payloads, outcome)
    return outcome


async def run_schemathesis(port: int, examples: int, seed: int) -> dict[str, Any]:
    """Return its report for one seed. Raises RuntimeError if it could not run.

    examples: for each operation with a body.
    """
    records, log = LOGS / f"fuzz-{seed}.json", LOGS / f"fuzz-{seed}.log"
    # Phases that do not depend on the seed run with the first one.
    phases = "examples,coverage,fuzzing" if seed == FIRST_SEED else "fuzzing"
    options = {
        "phases": phases,
        "max-examples": examples,
        "seed": seed,
        "request-timeout": CLIENT_TIMEOUT_S,
        "max-response-time": REPLY_WITHIN_S,
        "suppress-health-check": "all",
        "report": "json",
        "report-json-path": records.name,
    }
    command = ["-m", "schemathesis.cli", "--config-file", str(CONFIGURATION)]
    command += ["run", f"http://127.0.0.1:{port}/openapi.json", "--continue-on-failure", "--no-color"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]

    def prepare() -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        records.unlink(missing_ok=True)

    await asyncio.to_thread(prepare)
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=output, stderr=output, cwd=LOGS)
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
    if code not in (0, 1):
        lines = read(log).strip().splitlines() or ["its log is empty"]
        raise RuntimeError(f"schemathesis exited with {code}: {lines[-1][:300]}")
    report: dict[str, Any] = json.loads(read(records))
    return report


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def count(report: dict[str, Any], outcome: Outcome) -> None:
    """Count cases as requests: those with a failure failed, those without a reply were lost."""
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
