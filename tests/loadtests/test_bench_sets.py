"""Test what the ways to read are timed on: as many sequences as the service would run, and one case after the other."""

import json
from pathlib import Path

import pytest

from loadtests.bench.sets import Way, main


def test_each_way_reads_what_the_service_would(
    bundle_folder: Path, response_bundle_folder: Path, shared_prompt_bundle_folder: Path
) -> None:
    pair, response, one = (
        Way.open(folder, reads, 1)
        for folder, reads in (
            (bundle_folder, "pair"),
            (response_bundle_folder, "response"),
            (shared_prompt_bundle_folder, "set"),
        )
    )
    assert [len(way.sequences(10, 6, 4)) for way in (pair, response, one)] == [12, 4, 1]
    (sequence,) = one.sequences(10, 6, 4)
    special = one.bundle.manifest.special_tokens
    ids = sequence.input_ids.tolist()
    assert (ids.count(special.mask), ids.count(special.sep), len(ids)) == (4, 5, 12 + 4 * 8)
    assert one.engine.run([sequence]).shape == (1, 4)


def test_the_command_times_all_ways_and_keeps_the_results_of_other_sizes(
    bundle_folder: Path,
    response_bundle_folder: Path,
    shared_prompt_bundle_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "sets.json"
    folders = ["--sets", str(shared_prompt_bundle_folder), "--pointwise", str(response_bundle_folder)]
    for response in ("4", "5"):
        sizes = ["--prompt", "8", "--response", response, "--rounds", "1", "--threads", "1", "--out", str(out)]
        assert main([*folders, "--pairwise", str(bundle_folder), *sizes]) == 0
    results = json.loads(out.read_text())
    assert len(results) == 2
    for result in results.values():
        assert [case["responses"] for case in result["cases"]] == [2, 8, 16]
        for case in result["cases"]:
            n, ways = case["responses"], case["ways"]
            assert [way["sequences"] for way in ways.values()] == [1, n, n * (n - 1)]
            assert all(way["median_s"] > 0 for way in ways.values())
    assert "set, others: none" in capsys.readouterr().out


def test_a_bundle_that_reads_something_else_is_refused(
    bundle_folder: Path, response_bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["--sets", str(bundle_folder), "--pointwise", str(response_bundle_folder), "--pairwise", str(bundle_folder)]
    assert main(wrong) == 1
    assert "reads a pair; name a bundle that reads a set" in capsys.readouterr().err
