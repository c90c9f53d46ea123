"""Short versions of `make load` and `make chaos`. They promise counts; how fast, a test machine cannot say."""

from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from loadtests.chaos.__main__ import CASES, outcome_of
from loadtests.chaos.case import Context, Extent
from loadtests.load import __main__ as load
from loadtests.load import mlperf, overload
from loadtests.payloads import Payloads, synthetic
from loadtests.service_process import known_settings, started

PAYLOADS = Payloads(synthetic(64), "synthetic")
EXTENT = Extent(
    load_s=1.5, soak_s=2, clients=60, fuzz_examples=100, unready_within_s=30, restart_within_s=60, most_growth=10,
    with_peers=False,
)  # fmt: skip
# One case shows in the fast tier that the harness works; what it kills is killed there by test_process.py, too.
OURS = [
    pytest.param(name, marks=[] if name == "half-sent" else pytest.mark.slow)
    for name, case in CASES.items()
    if case.ours
]


@pytest.fixture(scope="module")
def context(bundle_folder: Path) -> Context:
    settings = {"model": bundle_folder, "max_batch_tokens": 512}
    return Context(PAYLOADS, settings, known_settings(), capacity_per_s=40, extent=EXTENT)


@pytest.mark.parametrize("name", OURS)
def test_nothing_is_lost(name: str, context: Context) -> None:
    # The toy model is fast: what has to be too much for it is more than what the other cases need.
    flooded = name.startswith(("full", "deadlines"))
    record = outcome_of(CASES[name], replace(context, capacity_per_s=300) if flooded else context)
    if "reason" in record:
        pytest.skip(record["reason"])
    assert record["broken"] == []
    assert record["lost"] == 0
    assert record["answered"] > 0


@pytest.mark.slow
def test_nothing_is_lost_when_two_fronts_leave(context: Context) -> None:
    """With an engine that takes no time, and so many arrivals that somebody stands in the door when it is closed."""
    settings = {**context.settings, "workers": 2, "engine": "null"}
    record = outcome_of(CASES["terminated"], replace(context, settings=settings, capacity_per_s=500))
    assert record["broken"] == []
    assert record["lost"] == 0
    assert record["answered"] > 0


@pytest.mark.slow
def test_overload_loses_nothing(bundle_folder: Path) -> None:
    plan = overload.Overload(seconds=1, peak_seconds=0.3, settings={"model": bundle_folder})
    measured = uvloop.run(overload.measure(PAYLOADS, plan))
    assert measured["broken"] == []
    assert measured["sent"] == measured["answered"] + measured["refused"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["Server", "Offline"])
def test_loadgen_gets_an_answer_to_every_sample(scenario: mlperf.Scenario, bundle_folder: Path) -> None:
    async def run() -> mlperf.Outcome:
        async with started(model=bundle_folder) as service:
            return await mlperf.run(service.port, PAYLOADS, mlperf.Trial(scenario, 20, 1, p99_bound_s=60))

    outcome = uvloop.run(run())
    assert outcome.unanswered == 0
    assert outcome.queries > 0
    assert outcome.rate > 0


@pytest.mark.slow
def test_load_command_writes_its_section(bundle_folder: Path, tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("<!-- load: begin -->\n<!-- load: end -->\n")
    options = [
        "--quick",
        "--model",
        str(bundle_folder),
        "--pairs",
        str(tmp_path / "absent"),
        "--document",
        str(document),
    ]
    assert load.main([*options, "--parts", "ceiling", "overhead", "scrape"]) == 0
    assert "### The front alone" in document.read_text()
    assert "### Scrapes" in document.read_text()
    assert (tmp_path / "load.json").is_file()
