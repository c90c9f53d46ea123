"""Test the table of a card that states what a model was made from."""

from typing import Any

import pytest

from evaluation.provenance import provenance_table
from tests.conftest import REPOSITORY
from tinyrm.bundle import Bundle, read_manifest
from tinyrm.manifest import Calibration, Manifest, Provenance

COMMIT = "c" * 40


def digest(number: int) -> str:
    return f"{number:064x}"[::-1]


@pytest.fixture
def manifest(bundle_folder: Any) -> Manifest:
    return Bundle.open(bundle_folder).manifest


def table(manifest: Manifest, **fields: Any) -> list[tuple[str, ...]]:
    origin = Provenance(base_model="runs/mine", base_sha256=digest(1), created="today", git_commit=COMMIT, **fields)
    text = provenance_table(manifest.model_copy(update={"provenance": origin}))
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in text.splitlines()[2:]]


def test_each_part_has_its_revision_and_its_digest(manifest: Manifest) -> None:
    found = table(
        manifest,
        base_commit=COMMIT,
        adapter="runs/adapter",
        adapter_sha256=digest(2),
        recipe={"model": "org/base"},
        data_sha256={"hub:org/pairs": digest(3), "mine.jsonl": digest(4)},
        data_revisions={"hub:org/pairs": "d" * 40},
        training={
            "base_sha256": digest(5),
            "base_commit": "e" * 40,
            "teachers": {"models/teacher": digest(6)},
            "base": {"recipe": {"model": {"hidden_size": 8}}, "data_sha256": {"texts.jsonl": digest(7)}},
        },
    )
    short = [digest(number)[:12] for number in range(8)]
    assert found[:2] == [
        ("weights", "runs/mine", "c" * 12, short[1]),
        ("adapter", "runs/adapter", "-", short[2]),
    ]
    assert found[3:8] == [
        ("trained from", "org/base", "e" * 12, short[5]),
        ("data", "hub:org/pairs", "d" * 12, short[3]),
        ("data", "mine.jsonl", "-", short[4]),
        ("teacher", "models/teacher", "-", short[6]),
        ("data", "texts.jsonl", "-", short[7]),
    ]
    assert found[2][0] == "tokenizer"
    assert found[-1] == ("code", "TinyRM at export", "c" * 12, "-")


def test_a_merged_model_names_its_specialists_and_what_each_learnt_from_once(manifest: Manifest) -> None:
    runs = {
        "runs/a": {"recipe": {"model": "org/base"}, "base_sha256": digest(1), "data_sha256": {"both.jsonl": digest(3)}},
        "runs/b": {"recipe": {"model": "org/base"}, "base_sha256": digest(1), "data_sha256": {"both.jsonl": digest(3)}},
    }
    training = {"specialists_sha256": {name: digest(8) for name in runs}, "specialists": runs}
    found = table(manifest, recipe={"method": "mean"}, training=training)
    names = [(part, name) for part, name, *_ in found]
    assert names[2:6] == [
        ("merged from", "runs/a"),
        ("merged from", "runs/b"),
        ("trained from", "org/base"),
        ("data", "both.jsonl"),
    ]
    assert len(set(found)) == len(found)


def test_calibration_pairs_have_a_digest(manifest: Manifest) -> None:
    known = Calibration(
        pairs=60,
        wrong=9,
        held_out=True,
        chosen=(),
        log_temperature_std=None,
        temperature_one_order=None,
        pairs_sha256=digest(9),
    )
    row = ("calibration", "60 pairs, held out by the training", "-", digest(9)[:12])
    assert row in table(manifest.model_copy(update={"calibration": known}))


def test_a_record_of_another_model_or_an_older_one_has_what_is_known(manifest: Manifest) -> None:
    assert [part for part, *_ in table(manifest.model_copy(update={"calibration": None}))] == [
        "weights",
        "tokenizer",
        "code",
    ]
    starter = provenance_table(read_manifest(REPOSITORY / "models" / "starter"))
    assert "| trained from | sentence-transformers/all-MiniLM-L6-v2 | c9745ed1d9f2 |" in " ".join(starter.split())
