"""Run short forms of `make load` and `make chaos`; check their counts, because a test machine cannot show speed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from loadtests.chaos.__main__ import CASES, Name, run_case
from loadtests.chaos.case import Context, Extent
from loadtests.load import __main__ as load
from loadtests.load import mlperf, overload
from loadtests.payloads import Payloads, synthetic
from loadtests.service_process import started

PAYLOADS = Payloads(synthetic(64), "synthetic")
EXTENT = Extent(
    load_s=1.5,
    soak_s=2,
    clients=60,
    fuzz_examples=8,
    unready_within_s=30,
    restart_within_s=60,
    max_growth=10,
    with_peers=False,
)
# One case shows in the fast tier that the harness works; test_process.py kills and stops services there, too.
QUICK: Name = "half-sent"
OURS = [
    pytest.param(name, marks=() if name == QUICK else pytest.mark.slow, id=name)
    for name, case in CASES.items()
    if case.ours
]


@pytest.fixture(scope="module")
def context(bundle_folder: Path) -> Context:
    return Context(PAYLOADS, {"model": bundle_folder, "max_batch_tokens": 512}, capacity_per_s=40, extent=EXTENT)


def expect_no_loss(name: Name, context: Context) -> None:
    record = run_case(CASES[name], context)
    assert record["broken"] == []
    assert record["lost"] == 0
    assert record["answered"] > 0


@pytest.mark.parametrize("name", OURS)
def test_a_case_loses_no_request(name: Name, context: Context) -> None:
    # The toy model is fast: too much for it is more than what the other cases need.
    flooded = name.startswith(("full", "deadlines"))
    expect_no_loss(name, replace(context, capacity_per_s=300) if flooded else context)


@pytest.mark.slow
def test_two_front_processes_exit_without_a_lost_request(context: Context) -> None:
    """The engine takes no time, and so many requests arrive that some wait to be accepted when the listener closes."""
    settings = {**context.settings, "workers": 2, "engine": "null"}
    expect_no_loss("terminated", replace(context, settings=settings, capacity_per_s=500))


@pytest.mark.slow
def test_overload_loses_no_request(bundle_folder: Path) -> None:
    settings = {"model": bundle_folder}
    measured = uvloop.run(overload.measure(PAYLOADS, settings, seconds=1, peak_seconds=0.3))
    assert measured["broken"] == []
    assert measured["sent"] == measured["answered"] + measured["refused"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["Server", "Offline"])
def test_loadgen_gets_a_reply_to_every_sample(scenario: mlperf.Scenario, bundle_folder: Path) -> None:
    async def run() -> mlperf.Outcome:
        async with started(model=bundle_folder) as service:
            return await mlperf.run(service.port, PAYLOADS, scenario, rate=20, seconds=1, p99_bound_s=60)

    outcome = uvloop.run(run())
    assert outcome.unanswered == 0
    assert outcome.queries > 0
    assert outcome.rate > 0


@pytest.mark.slow
def test_the_load_command_writes_its_section(bundle_folder: Path, tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("<!-- load: begin -->\n<!-- load: end -->\n")
    words = ["--quick", "--model", str(bundle_folder), "--pairs", str(tmp_path / "absent")]
    words += ["--document", str(document), "--parts"]
    assert load.main([*words, "ceiling", "overhead"]) == 0
    assert load.main([*words, "scrape"]) == 0
    titles = [line for line in document.read_text().splitlines() if line.startswith("###")]
    assert titles == ["### The front alone", "### One request on an idle service", "### Scrapes"]
    assert list(json.loads((tmp_path / "results" / "load.json").read_text())) == ["ceiling", "overhead", "scrape"]
