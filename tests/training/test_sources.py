"""Test that files and sets in any form give the same pairs, with their labels, from any format."""

import csv
import gzip
import io
import json
import lzma
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from pydantic import ValidationError

from tests.training import published
from tests.training.published import jsonl, parquet, pku_row, webgpt_row
from tinyrm.bundle import sha256
from tinyrm.errors import InvalidInput
from tinyrm.pairs import PreferencePair, read_pairs
from training.data.cleaning import Loaded, pairs_sha256
from training.data.mixture import load, load_all
from training.data.source import Source
from training.data_report import parse_sources

PLAIN: list[dict[str, Any]] = [
    {"prompt": f"Question {i}?", "chosen": f"Right, {i}.", "rejected": "No\nidea.", "domain": "chat"} for i in range(3)
]


def source(**fields: Any) -> Source:
    return Source.model_validate({"dataset": "file", "path": "own.jsonl", **fields})


def loaded(data: Path, rows: list[dict[str, Any]], **fields: Any) -> Loaded:
    """Write rows as the data folder's file of JSON lines and load it."""
    jsonl(rows, data / "own.jsonl")
    return load(source(**fields), data)


def texts(pairs: list[PreferencePair]) -> list[tuple[str, str, str]]:
    return [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_array(rows: list[dict[str, Any]]) -> bytes:
    return b"\xef\xbb\xbf\n " + json.dumps(rows, indent=1).encode()


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8-sig")


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=2)
    whole: bytes = buffer.getvalue().to_pybytes()
    return whole


def zstd(content: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(content)
    return bytes(buffer.getvalue())


FORMATS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "pairs.jsonl": as_lines,
    "pairs.ndjson": as_lines,
    "any name": as_lines,
    "lines.json": as_lines,
    "array.json": as_array,
    "pairs.csv": as_csv,
    "pairs.parquet": as_parquet,
}
PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_pairs(tmp_path: Path, name: str, packed: str) -> None:
    path = tmp_path / "elsewhere" / f"{name}{packed}"
    path.parent.mkdir()
    path.write_bytes(PACKED[packed](FORMATS[name](PLAIN)))
    expected = [(row["prompt"], row["chosen"], row["rejected"]) for row in PLAIN]
    for given in (f"elsewhere/{path.name}", str(path)):
        mixture = load_all([source(path=given)], tmp_path)
        assert texts(mixture.loaded.pairs) == expected
        assert mixture.sha256 == {given: sha256(path)}
    assert texts(read_pairs(path)) == expected, "evaluation and calibration read the same files"


def test_messages_and_labels_survive_csv_and_parquet(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    rows = [
        {"chosen": said, "rejected": [said[0], {"role": "assistant", "content": "No."}], "probability": 0.75},
        {"chosen": [said[0], {"role": "assistant", "content": "Hm."}], "rejected": said, "probability": None},
    ]
    (tmp_path / "t.parquet").write_bytes(as_parquet(rows))
    cells = [
        {name: json.dumps(value) if name != "probability" else value for name, value in row.items()} for row in rows
    ]
    (tmp_path / "t.csv").write_bytes(as_csv(cells))
    for name in ("t.parquet", "t.csv"):
        pairs = load(source(path=name), tmp_path).pairs
        assert texts(pairs) == [("Why?", "So.", "No."), ("Why?", "Hm.", "So.")]
        assert [pair.probability for pair in pairs] == [0.75, None]


def test_a_large_parquet_file_is_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyrm.tables.BATCH_ROWS", 2)
    (tmp_path / "t.parquet").write_bytes(as_parquet(PLAIN * 3))
    read: list[int] = []
    batches = pq.ParquetFile.iter_batches

    def counted(file: pq.ParquetFile, rows: int) -> Any:
        for batch in batches(file, rows):
            read.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    assert len(load(source(path="t.parquet"), tmp_path).pairs) == 3
    assert max(read) == 2
    assert sum(read) == 9


def test_a_folder_gives_its_files_and_those_for_training_if_they_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.csv").write_bytes(as_csv(PLAIN[:1]))
    (folder / "b.jsonl.zst").write_bytes(zstd(as_lines(PLAIN[1:2])))
    (folder / "readme.md").write_text("no rows")
    mixture = load_all([source(path="set")], tmp_path)
    assert [pair.prompt for pair in mixture.loaded.pairs] == ["Question 0?", "Question 1?"]
    assert mixture.sha256 == {"file:set": pairs_sha256(mixture.loaded.pairs)}
    (folder / "train.parquet").write_bytes(as_parquet(PLAIN[2:]))
    assert [pair.prompt for pair in load(source(path="set"), tmp_path).pairs] == ["Question 2?"]


def test_a_saved_set_gives_the_split(tmp_path: Path) -> None:
    Dataset.from_list(PLAIN).save_to_disk(tmp_path / "one")
    splits = {"train": Dataset.from_list(PLAIN[:1]), "test": Dataset.from_list(PLAIN[1:])}
    DatasetDict(splits).save_to_disk(tmp_path / "two")
    assert len(load(source(path="one"), tmp_path).pairs) == 3
    assert len(load(source(path="two"), tmp_path).pairs) == 1
    assert len(load(source(path="two", split="test"), tmp_path).pairs) == 2


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.parquet", b"PAR1 nothing", "a.parquet cannot be read as Parquet"),
        ("a.csv", as_csv(PLAIN) + b"more,than,four,names,here\n", "row 4 has more cells than the first row has names"),
        ("a.json", b'[{"prompt": ', "a.json cannot be read as JSON"),
        ("a.jsonl.zst", b"not packed", "a.jsonl.zst cannot be read"),
        ("a.jsonl", as_parquet(PLAIN), "it is Parquet; its name must end in .parquet"),
        ("a.csv", as_lines(PLAIN), "a.csv, row 1: "),
        ("a.json", b"[1]", "a.json, row 1: a record must be an object, not int"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput) as error:
        load(source(path=name), tmp_path)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_is_named_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl.gz").touch()
    with pytest.raises(InvalidInput, match=r"own\.jsonl does not exist.*there is .*own\.jsonl\.gz"):
        load(source(), tmp_path)


COMMIT = "89abcdef01234567" * 2 + "89abcdef"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Serve one set from a hub that is at COMMIT; return what is asked of it."""
    calls: list[dict[str, Any]] = []
    rows = [{"q": row["prompt"], "good": row["chosen"], "bad": row["rejected"], "margin": "big"} for row in PLAIN]

    def load_dataset(path: str, **arguments: Any) -> Dataset:
        calls.append({"path": path, **{name: value for name, value in arguments.items() if value is not None}})
        if path == "no/where":
            raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']\nmore")
        return Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("training.data.readers.any_form.dataset_commit", lambda _, revision: revision or COMMIT)
    return calls


def hub(**fields: Any) -> Source:
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad", "margin": None}
    return Source.model_validate({"dataset": "hub", "id": "own/er", "columns": columns, **fields})


def test_a_set_of_the_hub_is_read_at_its_commit_under_our_names(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    mixture = load_all([hub()], tmp_path)
    assert asked == [{"path": "own/er", "revision": COMMIT, "split": "train"}]
    assert texts(mixture.loaded.pairs) == [(row["prompt"], row["chosen"], row["rejected"]) for row in PLAIN]
    assert {pair.subset for pair in mixture.loaded.pairs} == {"own/er"}
    assert mixture.commits == {"hub:own/er": COMMIT}
    assert mixture.sha256 == {"hub:own/er": pairs_sha256(mixture.loaded.pairs)}


def test_revision_split_and_config_are_asked_for(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    mixture = load_all([hub(revision="v1", split="test", config="math", domain="math")], tmp_path)
    assert asked == [{"path": "own/er", "name": "math", "revision": "v1", "split": "test"}]
    assert list(mixture.parts) == ["hub:own/er/math, test"]
    assert {pair.domain for pair in mixture.loaded.pairs} == {"math"}


@pytest.mark.usefixtures("asked")
def test_what_is_wrong_with_a_set_of_the_hub_is_said_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match=r"own/er, row 1: there is no question, which `columns` names; there are q"):
        load(hub(columns={"prompt": "question"}), tmp_path)
    with pytest.raises(InvalidInput, match=r"own/er, row 1: .*this one has the keys q, good, bad, margin"):
        load(hub(columns={}), tmp_path)
    with pytest.raises(InvalidInput, match=r"own/er, row 1: margin: .*number"):
        load(hub(columns={"prompt": "q", "chosen": "good", "rejected": "bad"}), tmp_path)
    with pytest.raises(InvalidInput, match=r"no/where cannot .*configs: \['a', 'b'\]\); check id, config, split"):
        load(hub(id="no/where"), tmp_path)
    (tmp_path / "own" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="own/er is a folder here, too"):
        load(hub(), tmp_path)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ({}, (None, None, 1.0)),
        ({"probability": None, "weight": None}, (None, None, 1.0)),
        ({"probability": 0.75}, (0.75, None, 1.0)),
        ({"probability": "0.75", "weight": "2"}, (0.75, None, 2.0)),
        ({"margin": 1.5}, (None, 1.5, 1.0)),
        ({"probability": 0.5, "weight": 0.25}, (0.5, None, 0.25)),
    ],
)
def test_labels_are_read_from_their_columns(tmp_path: Path, label: dict[str, Any], expected: tuple[Any, ...]) -> None:
    (pair,) = loaded(tmp_path, [PLAIN[0] | label]).pairs
    assert (pair.probability, pair.margin, pair.weight) == expected
    assert texts([pair]) == texts(loaded(tmp_path, PLAIN[:1]).pairs)
    assert read_pairs(tmp_path / "own.jsonl", ties=True) == [PreferencePair(**PLAIN[0])]
    jsonl([PLAIN[0] | label], tmp_path / "own.jsonl")
    (read,) = read_pairs(tmp_path / "own.jsonl", ties=True)
    assert (read.probability, read.margin, read.weight) == expected


@pytest.mark.parametrize(
    ("label", "flipped"), [({"probability": 0.25}, 0.75), ({"margin": -2.0}, 1 / (1 + math.exp(-2)))]
)
def test_below_one_half_the_other_response_is_the_better_one(
    tmp_path: Path, label: dict[str, float], flipped: float
) -> None:
    (pair,) = loaded(tmp_path, [PLAIN[0] | label]).pairs
    assert texts([pair]) == [("Question 0?", "No\nidea.", "Right, 0.")]
    assert pair.target == pytest.approx(flipped)
    assert read_pairs(tmp_path / "own.jsonl")[0].chosen == pair.chosen


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ({"probability": 0.5, "margin": 0}, "a pair has a `probability` or a `margin`, which is its log-odds"),
        ({"probability": 1.5}, "probability: Input should be less than or equal to 1"),
        ({"margin": "very"}, "margin: Input should be a valid number"),
        ({"weight": 0}, "weight: Input should be greater than 0"),
        ({"weight": "inf"}, "weight: Input should be a finite number"),
    ],
)
def test_a_label_that_is_none_is_refused_with_its_line(tmp_path: Path, label: dict[str, Any], reason: str) -> None:
    jsonl([PLAIN[1], PLAIN[0] | label], tmp_path / "own.jsonl")
    for read in (lambda: load(source(), tmp_path), lambda: read_pairs(tmp_path / "own.jsonl")):
        with pytest.raises(InvalidInput) as error:
            read()
        assert "own.jsonl, line 2: " in str(error.value)
        assert reason in str(error.value)


RIVALS = {"prompt": "Why?", "response_a": "So.", "response_b": "No."}


@pytest.mark.parametrize(
    ("row", "chosen"),
    [
        (RIVALS | {"winner": "model_a"}, "So."),
        (RIVALS | {"winner": "B"}, "No."),
        (RIVALS | {"winner": None, "margin": -40}, "No."),
        (
            {
                f"conversation_{side}": [
                    {"role": "user", "content": "Why?"},
                    {"role": "assistant", "content": RIVALS[f"response_{side}"]},
                ]
                for side in "ab"
            }
            | {"winner": "model_b", "question_id": 7},
            "No.",
        ),
    ],
)
def test_a_winner_chooses_between_two_rivals(tmp_path: Path, row: dict[str, Any], chosen: str) -> None:
    (pair,) = loaded(tmp_path, [row]).pairs
    assert (pair.prompt, pair.chosen) == ("Why?", chosen)
    assert pair.is_soft == ("margin" in row)


@pytest.mark.parametrize(
    "row",
    [
        RIVALS | {"winner": "tie"},
        RIVALS | {"winner": "tie (bothbad)"},
        {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "tie": True},
        {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "tie": "TRUE"},
        {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "winner": "tie"},
        {"prompt": "Why?", "responses": ["So.", "No."], "scores": [3, 3]},
    ],
)
def test_a_tie_is_dropped_or_learnt_as_the_source_has_it(tmp_path: Path, row: dict[str, Any]) -> None:
    dropped = loaded(tmp_path, [row, PLAIN[0]])
    assert dropped.dropped == {"tie": 1}
    assert len(dropped.pairs) == 1
    (tie, plain) = loaded(tmp_path, [row | {"weight": 2}, PLAIN[0]], ties="learn").pairs
    assert (tie.chosen, tie.probability, tie.weight) == ("So.", 0.5, 2)
    assert not plain.is_soft
    assert [pair.prompt for pair in read_pairs(tmp_path / "own.jsonl")] == ["Question 0?"], "a tie is no verdict"


@pytest.mark.parametrize("probability", [{"probability": 0.2}, {"margin": -1}])
def test_a_probability_of_a_beside_a_winner_is_refused(tmp_path: Path, probability: dict[str, float]) -> None:
    """Read as that of the winner, it would turn the verdict round."""
    with pytest.raises(InvalidInput, match="the winner is b, and the probability or the margin is for the other one"):
        loaded(tmp_path, [RIVALS | {"winner": "b", **probability}])


@pytest.mark.parametrize(("value", "is_tie"), [("FALSE", False), (0, False), ("", False), (None, False), ("yes", True)])
def test_a_tie_is_read_as_tables_write_it(tmp_path: Path, value: object, is_tie: bool) -> None:
    rows = [PLAIN[0], PLAIN[1] | {"tie": value}]
    assert len(loaded(tmp_path, rows).pairs) == (1 if is_tie else 2)


def test_a_tie_that_cannot_be_read_is_not_taken_for_a_verdict(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"own\.jsonl, line 1: tie must be true or false, not 'perhaps'"):
        loaded(tmp_path, [PLAIN[0] | {"tie": "perhaps"}])


def test_a_weight_whose_sum_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="weight: Input should be less than or equal to"):
        loaded(tmp_path, [row | {"weight": 1e308} for row in PLAIN])


def test_a_column_that_csv_has_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("prompt,chosen,rejected,chosen\nWhy?,So.,No.,Oh.\n")
    with pytest.raises(InvalidInput, match=r"own\.csv has several columns of the name 'chosen'"):
        load(source(path="own.csv"), tmp_path)


def test_hidden_files_are_not_read_and_constraints_are_no_training_files(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    (folder / ".ipynb_checkpoints" / "a-checkpoint.jsonl").write_text("damaged")
    (folder / "._a.jsonl").write_text("damaged")
    jsonl(PLAIN[:1], folder / "a.jsonl")
    jsonl(PLAIN[1:], folder / "constraints.jsonl")
    assert len(load(source(path="set"), tmp_path).pairs) == 3


def test_a_source_that_is_named_twice_keeps_both_parts(tmp_path: Path) -> None:
    jsonl(PLAIN, tmp_path / "own.jsonl")
    mixture = load_all([source(), source(max_pairs=2), source()], tmp_path)
    assert {name: len(part.pairs) for name, part in mixture.parts.items()} == {
        "file:own.jsonl as None": 3,
        "file:own.jsonl as None (2)": 2,
        "file:own.jsonl as None (3)": 3,
    }


def test_ties_of_published_sets_are_learnt_on_request(tmp_path: Path) -> None:
    rows = [webgpt_row("Why?", ("So.", "No."), 1.0), webgpt_row("When?", ("Now.", "Then."), 0.0)]
    parquet(rows, published.WEBGPT, tmp_path / "webgpt.parquet")
    ours = Source.model_validate({"dataset": "webgpt"})
    assert load(ours, tmp_path).dropped == {"tie": 1}
    pairs = load(ours.model_copy(update={"ties": "learn"}), tmp_path).pairs
    assert [pair.probability for pair in pairs] == [None, 0.5]
    parquet([pku_row("Why?", ("So.", "No."), safer=-1, better=1)], published.PKU, tmp_path / "pku-saferlhf.parquet")
    (pair,) = load(Source.model_validate({"dataset": "pku-saferlhf", "ties": "learn"}), tmp_path).pairs
    assert (pair.chosen, pair.probability) == ("So.", 0.5)


def completion(text: str, overall: float, *ratings: str) -> dict[str, Any]:
    """Return a completion with the keys that openbmb/UltraFeedback has."""
    aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    annotations = {name: {"Rating": rating, "Rationale": "..."} for name, rating in zip(aspects, ratings, strict=False)}
    return {
        "annotations": annotations,
        "custom_system_prompt": "You are polite.",
        "model": "m",
        "response": text,
        "overall_score": overall,
    }


ULTRAFEEDBACK = {
    "source": "evol_instruct",
    "instruction": "Add 2 and 2.",
    "models": ["m"] * 4,
    "completions": [
        completion("Four", 10, "1", "2", "1", "N/A"),
        completion("It is 4.", 7, "5", "N/A", "5", "4"),
        completion("About 5", 6, "2", "2", "2", "2"),
        completion("Hello", 1, "1", "1", "1", "1"),
    ],
    "correct_answers": ["None"],
}
ORDER = ["It is 4.", "About 5", "Four", "Hello"]


def test_the_completions_of_ultrafeedback_are_pairs_by_the_mean_of_their_ratings(tmp_path: Path) -> None:
    pairs = loaded(tmp_path, [ULTRAFEEDBACK]).pairs
    assert {pair.prompt for pair in pairs} == {"Add 2 and 2."}
    found = [(pair.chosen, pair.rejected) for pair in pairs]
    assert sorted(found) == sorted((a, b) for i, a in enumerate(ORDER) for b in ORDER[i + 1 :])
    assert not any(pair.is_soft for pair in pairs)
    bare = [
        {key: value for key, value in each.items() if key != "annotations"} for each in ULTRAFEEDBACK["completions"]
    ]
    overall = loaded(tmp_path, [ULTRAFEEDBACK | {"completions": bare}]).pairs
    assert ("Four", "It is 4.") in [(pair.chosen, pair.rejected) for pair in overall]
    (tmp_path / "u.parquet").write_bytes(as_parquet([ULTRAFEEDBACK]))
    assert texts(load(source(path="u.parquet"), tmp_path).pairs) == texts(pairs)


def test_pairs_of_a_row_are_capped_by_their_texts_alone(tmp_path: Path) -> None:
    capped = loaded(tmp_path, [ULTRAFEEDBACK], pairs_per_row=2).pairs
    turned = ULTRAFEEDBACK | {"completions": ULTRAFEEDBACK["completions"][::-1]}
    assert len(capped) == 2
    assert set(texts(loaded(tmp_path, [turned], pairs_per_row=2).pairs)) == set(texts(capped))
    seven = {"prompt": "p", "responses": list("abcdefg"), "scores": [7, 6, 5, 4, 3, 2, 1]}
    assert len(loaded(tmp_path, [seven]).pairs) == 6
    assert len(loaded(tmp_path, [seven], pairs_per_row=100).pairs) == 21


@pytest.mark.parametrize(
    "row",
    [
        {
            "prompt": "\n\nHuman: Add 2 and 2.\n\nAssistant: ",
            "answers": [
                {"answer": "4", "model": "m", "rank": 1.0},
                {"answer": "5", "model": "n", "rank": 3.0},
                {"answer": "four", "model": "o", "rank": 2.0},
            ],
        },
        {"prompt": "Add 2 and 2.", "responses": ["5", "four", "4"], "scores": ["1", "2", 3.5]},
        {"prompt": "Add 2 and 2.", "responses": ["5", "four", "4", "unrated"], "scores": [1, 2, 3, None]},
        {"prompt": "Add 2 and 2.", "candidates": ["5", "four", "4"], "ranks": [3, 2, 1]},
        {
            "question": "Add 2 and 2.",
            "completions": [{"text": t, "score": s} for t, s in (("5", 0), ("four", 1), ("4", 2))],
        },
    ],
)
def test_lists_with_scores_or_ranks_are_pairs(tmp_path: Path, row: dict[str, Any]) -> None:
    pairs = loaded(tmp_path, [row]).pairs
    assert sorted((pair.chosen, pair.rejected) for pair in pairs) == [("4", "5"), ("4", "four"), ("four", "5")]
    assert {pair.prompt.strip() for pair in pairs} == {"Add 2 and 2."}


def test_scores_become_margins_only_by_the_rule_of_the_recipe(tmp_path: Path) -> None:
    binarized = PLAIN[0] | {"score_chosen": 8.5, "score_rejected": 5.0}
    assert not loaded(tmp_path, [binarized]).pairs[0].is_soft
    rule = {"scores": {"margin_per_point": 0.5}}
    (pair,) = loaded(tmp_path, [binarized], **rule).pairs
    assert pair.margin == 0.5 * 3.5
    assert pair.target == pytest.approx(1 / (1 + math.exp(-1.75)))
    named = {"columns": {"score_chosen": "a", "score_rejected": "b"}, **rule}
    (pair,) = loaded(tmp_path, [PLAIN[0] | {"a": "1", "b": "5"}], **named).pairs
    assert (pair.chosen, pair.margin) == ("No\nidea.", 2.0), "scored the other way round"
    several = loaded(tmp_path, [ULTRAFEEDBACK], **rule).pairs
    margins = {(pair.chosen, pair.rejected): pair.margin for pair in several}
    assert margins["It is 4.", "About 5"] == pytest.approx(0.5 * (14 / 3 - 2))
    equal = {"prompt": "p", "responses": ["a", "b"], "scores": [3, 3]}
    assert [pair.target for pair in loaded(tmp_path, [equal], **rule).pairs] == [0.5]


@pytest.mark.parametrize(
    ("row", "fields", "reason"),
    [
        (PLAIN[0], {"scores": {"margin_per_point": 1}}, "there are no score_chosen and score_rejected; name them with"),
        (
            PLAIN[0] | {"score_chosen": 1, "score_rejected": 0, "margin": 1},
            {"scores": {"margin_per_point": 1}},
            "there is a probability or a margin, and the source makes margins of scores",
        ),
        (
            {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2]},
            {"scores": {"margin_per_point": 1}},
            "has ranks, which have no distance",
        ),
        ({"prompt": "p", "responses": ["a", "b"]}, {}, "holds 2 responses without scores or ranks"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1]}, {}, "holds 2 responses, and scores holds 1 values"),
        (
            {"prompt": "p", "responses": ["a", "b"], "scores": [1, "good"]},
            {},
            "scores must be a finite number, not 'good'",
        ),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1, 2], "margin": 1}, {}, "is of two responses"),
        ({"prompt": "p", "completion": "c", "label": True}, {}, "unpaired, as for KTO) hold no pairs"),
        (RIVALS | {"label": 1}, {}, "a `label` does not say of which response it is"),
        (RIVALS, {}, "do not say which one is better: a row needs a `winner`"),
        (
            {"prompt": "p", "answers": [{"reply": "a", "rank": 1}, {"reply": "b", "rank": 2}]},
            {},
            "it has the keys reply",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_is_expected(
    tmp_path: Path, row: dict[str, Any], fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidInput) as error:
        loaded(tmp_path, [row], **fields)
    assert "own.jsonl, line 1: " in str(error.value)
    assert reason in str(error.value)


def test_opinions_on_one_pair_are_joined_and_contradict_nothing(tmp_path: Path) -> None:
    pair = PLAIN[0]
    turned = pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]}
    opinions = [pair | {"probability": 0.9}, turned | {"probability": 0.6, "weight": 3}, PLAIN[1], PLAIN[1]]
    found = loaded(tmp_path, opinions)
    assert found.dropped == {"duplicate": 2}
    first, second = found.pairs
    # (0.9 + 3 * 0.4) / 4 = 0.525
    assert (first.chosen, first.weight) == (pair["chosen"], 2)
    assert first.probability == pytest.approx(0.525)
    assert not second.is_soft
    assert loaded(tmp_path, [pair, turned, PLAIN[1]]).dropped == {"contradiction": 2}, "without a probability"
    (mixed, _) = loaded(tmp_path, [pair, turned | {"probability": 0.5}, PLAIN[1]]).pairs
    assert mixed.probability == pytest.approx(0.75), "a verdict and a tie"


def test_labels_are_in_the_hash_and_plain_pairs_keep_theirs() -> None:
    plain = PreferencePair(prompt="p", chosen="c", rejected="r")
    labels = ({"probability": 0.9}, {"margin": 0.9}, {"weight": 2.0})
    hashes = {pairs_sha256([plain.model_copy(update=label)]) for label in labels}
    assert len(hashes | {pairs_sha256([plain])}) == 4
    assert pairs_sha256([plain]) == "42f7e81b781e1819fe86fd3bc9725e1f3143150ac844c1ab3d2916c91c89738b"


def test_a_pair_without_scores_is_written_as_before() -> None:
    plain = PreferencePair(prompt="p", chosen="c", rejected="r")
    assert plain.model_dump_json() == '{"prompt":"p","chosen":"c","rejected":"r","domain":null,"subset":null}'
    soft = plain.model_copy(update={"probability": 0.75, "weight": 2.0})
    assert PreferencePair.model_validate_json(soft.model_dump_json()) == soft


@pytest.mark.parametrize(
    "fields",
    [
        {"dataset": "hub"},
        {"dataset": "hub", "id": "a/b", "path": "x"},
        {"dataset": "file"},
        {"dataset": "file", "path": "x", "id": "a/b"},
        {"dataset": "file", "path": "x", "config": "a"},
        {"dataset": "file", "path": "x", "columns": {"answer": "a"}},
        {"dataset": "file", "path": "x", "scores": {"margin_per_point": 0}},
        {"dataset": "file", "path": "x", "pairs_per_row": 0},
        {"dataset": "file", "path": "x", "ties": "keep"},
        {"dataset": "webgpt", "columns": {"prompt": "p"}},
        {"dataset": "webgpt", "scores": {"margin_per_point": 1}},
    ],
)
def test_an_invalid_source_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Source.model_validate(fields)


def test_a_source_is_a_key_and_is_recorded_without_what_it_does_not_use() -> None:
    plain = Source.model_validate({"dataset": "jsonl", "path": "a.jsonl"})
    assert plain.model_dump(exclude_none=True) == {"dataset": "jsonl", "path": "a.jsonl"}
    other = source(columns={"prompt": "q"}, ties="learn", scores={"margin_per_point": 1})
    assert Source.model_validate_json(other.model_dump_json()) == other
    assert len({plain, other, other.model_copy(), source(columns={"prompt": "p"})}) == 3


def test_the_command_line_names_files_and_sets_of_the_hub() -> None:
    file, hub_set, older = parse_sources(["file:a.parquet", "hub:own/er", "jsonl:b.jsonl"])
    assert (file.path, hub_set.id, older.path) == ("a.parquet", "own/er", "b.jsonl")
