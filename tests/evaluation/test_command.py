"""python -m evaluation on a bundle: table, JSON, manifest and card."""

import json
import shutil
from pathlib import Path

import pytest

from evaluation.__main__ import main
from evaluation.card import BEGIN, END
from tinyrm.bundle import Bundle


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q{i}", "chosen": "yes " * i, "rejected": "no", "domain": "safety"} for i in range(1, 6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["evaluation", *map(str, arguments)])
    return main()


def test_prints_a_table_and_ends_in_json(monkeypatch, capsys, bundle_folder: Path, pairs: Path) -> None:
    assert run(monkeypatch, "--bundle", bundle_folder, "--pairs", pairs) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("| safety | 5 | 5 |") for line in lines)
    results = json.loads(lines[-1])
    assert results["model"] == Bundle.open(bundle_folder).manifest.identity
    assert 0 <= results["domains"]["all"]["accuracy"]["value"] <= 1


def test_results_go_into_manifest_and_card(monkeypatch, tmp_path: Path, bundle_folder: Path, pairs: Path) -> None:
    bundle = shutil.copytree(bundle_folder, tmp_path / "bundle")
    (bundle / "README.md").write_text(f"# Toy\n{BEGIN}\nold\n{END}\nLimits.\n")
    assert run(monkeypatch, "--bundle", bundle, "--pairs", pairs, "--record", "--card") == 0
    manifest = Bundle.open(bundle).manifest
    assert manifest.evaluation["domains"]["safety"]["pairs"] == 5
    assert manifest.revision == Bundle.open(bundle_folder).manifest.revision
    card = (bundle / "README.md").read_text()
    assert "| safety | 5 |" in card
    assert "old" not in card
    assert card.endswith("Limits.\n")


def test_a_card_without_markers_and_a_bad_line_are_clear_errors(
    monkeypatch, capsys, tmp_path, bundle_folder, pairs
) -> None:
    bundle = shutil.copytree(bundle_folder, tmp_path / "bundle")
    assert run(monkeypatch, "--bundle", bundle, "--pairs", pairs, "--card") == 1
    assert BEGIN in capsys.readouterr().err
    pairs.write_text('{"prompt": "q", "chosen": ""}\n')
    assert run(monkeypatch, "--bundle", bundle_folder, "--pairs", pairs) == 1
    assert "line 1" in capsys.readouterr().err
