"""Test `tinyrm train PAIRS`: every form of pairs -> a bundle that is served, and what is refused before training."""

import csv
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.statistics import Share
from tests.conftest import REPOSITORY
from tests.support.processes import started
from tests.training.conftest import BETTER, WORSE, Toy
from tinyrm.bundle import read_manifest
from tinyrm.pairs import read_pairs
from training.__main__ import main
from training.data.mixture import load_all
from training.finetune.bundle import card_text, part
from training.finetune.command import uncertain
from training.finetune.prepare import prepare
from training.options import ModelOptions, PairOptions, Train

Row = dict[str, Any]


def messages(*texts: str, role: str = "role", content: str = "content") -> list[Row]:
    names = ("user", "assistant") if role == "role" else ("human", "gpt")
    return [{role: names[i % 2], content: text} for i, text in enumerate(texts)]


def texts(i: int) -> tuple[str, str, str]:
    return f"Question {i}?", " ".join([BETTER] * (1 + i % 3)), " ".join([WORSE] * (1 + i // 3 % 3))


def strings(i: int) -> Row:
    prompt, chosen, rejected = texts(i)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def of_messages(i: int) -> Row:
    prompt, chosen, rejected = texts(i)
    return {
        "prompt": messages(prompt),
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def implicit(i: int) -> Row:
    prompt, chosen, rejected = texts(i)
    return {"chosen": messages(prompt, chosen), "rejected": messages(prompt, rejected)}


def binarized(i: int) -> Row:
    prompt, *_ = texts(i)
    return {"prompt": prompt, **implicit(i), "score_chosen": 8.0, "score_rejected": 4.5}


def completions(i: int) -> Row:
    prompt, chosen, rejected = texts(i)
    return {
        "source": "evol_instruct",
        "instruction": prompt,
        "models": ["one", "two", "three"],
        "completions": [
            {"model": name, "response": response, "overall_score": score}
            for name, response, score in (("one", rejected, 3.0), ("two", chosen, 8.5), ("three", f"{rejected}.", 2.0))
        ],
    }


def transcripts(i: int) -> Row:
    prompt, chosen, rejected = texts(i)
    return {
        side: f"\n\nHuman: {prompt}\n\nAssistant: {text}" for side, text in (("chosen", chosen), ("rejected", rejected))
    }


def share_gpt(i: int) -> Row:
    prompt, chosen, rejected = texts(i)
    return {
        "conversations": messages(prompt, role="from", content="value"),
        "chosen": {"from": "gpt", "value": chosen},
        "rejected": {"from": "gpt", "value": rejected},
    }


# What each form is called, and a row of it.
FORMS: dict[str, Callable[[int], Row]] = {
    "strings": strings,
    "messages": of_messages,
    "implicit prompt": implicit,
    "UltraFeedback, binarized": binarized,
    "UltraFeedback": completions,
    "HH transcripts": transcripts,
    "ShareGPT": share_gpt,
}


ROWS = 200
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_lines(path: Path, rows: list[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_parquet(path: Path, rows: list[Row]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def write_csv(path: Path, rows: list[Row]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_packed(path: Path, rows: list[Row]) -> str:
    path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    return str(path)


def write_folder(path: Path, rows: list[Row]) -> str:
    path.mkdir()
    half = len(rows) // 2
    write_lines(path / "train-1.jsonl", rows[:half])
    write_parquet(path / "train-2.parquet", rows[half:])
    return str(path)


# What each source is called: how it is written, and the form of its rows.
SOURCES: dict[str, tuple[str, Callable[[Path, list[Row]], str], Callable[[int], Row]]] = {
    **{f"JSON lines, {name}": ("my.jsonl", write_lines, row) for name, row in FORMS.items()},
    "Parquet": ("my.parquet", write_parquet, of_messages),
    "CSV": ("my.csv", write_csv, strings),
    "packed JSON": ("my.json.gz", write_packed, implicit),
    "folder": ("my", write_folder, strings),
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Serve a set from a hub that is at COMMIT; return what is asked of it."""
    calls: list[dict[str, Any]] = []

    def load_dataset(path: str, **arguments: Any) -> datasets.Dataset:
        calls.append({"path": path, **arguments})
        return datasets.Dataset.from_list([of_messages(i) for i in range(ROWS)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("training.data.readers.any_form.dataset_commit", lambda *_: COMMIT)
    return calls


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a new folder, as a user does: runs/ and models/ are made there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(toy: Toy, *words: str) -> int:
    """Run the command with two steps on the toy base."""
    short = ["--set", "optimization.max_steps=2", "--set", "optimization.save_steps=1", "--max-tokens", "120"]
    return main(["train", "--base", str(toy.base), *short, *words])


def learn(toy: Toy, *words: str) -> int:
    """Run the command until the toy base knows the better word."""
    fast = ["--max-tokens", "120", "--set", "optimization.peak_lr=2e-3", "--set", "frozen_layers=0", "--epochs", "2"]
    return main(["train", "--base", str(toy.base), *fast, *words])


@pytest.mark.parametrize("source", SOURCES)
def test_every_form_of_pairs_is_read(work: Path, toy: Toy, source: str) -> None:
    name, write, row = SOURCES[source]
    write(work / name, [row(i) for i in range(ROWS)])
    prepared = prepare(Train((name,), model=ModelOptions(base=str(toy.base), max_tokens=120)))
    # UltraFeedback's own rows have three responses: three pairs.
    assert prepared.pairs == ROWS * (3 if row is completions else 1)
    assert prepared.dropped == {}


def test_columns_of_other_names_and_ties_are_read_as_the_command_says(
    work: Path, toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"Q {i}?", "good": BETTER, "bad": WORSE, "winner": "a" if i % 4 else "tie"} for i in range(16)]
    name = write_lines(work / "own.jsonl", rows)
    assert train(toy, name, "--dry-run") == 2
    assert "tinyrm train: --source columns.chosen=THEIRS" in capsys.readouterr().err
    columns = [
        f"columns.{ours}={theirs}" for ours, theirs in zip(("prompt", "chosen", "rejected"), rows[0], strict=False)
    ]
    pairs = PairOptions(source=(*columns, "ties=learn"))
    prepared = prepare(Train((name,), pairs=pairs, model=ModelOptions(base=str(toy.base)), dry_run=True))
    assert prepared.pairs == 16
    held_out = [pair.oriented() for pair in load_all(prepared.recipe.sources, Path()).loaded.pairs]
    halves = part(prepared, held_out)
    assert (len(halves.calibration), len(halves.measured)) == (16, 12), "ties are calibrated on and not measured"
    assert train(toy, name, "--source", "tie=learn", "--dry-run") == 2
    assert "`tie` is not a key of a recipe; did you mean `ties`?" in capsys.readouterr().err


def test_a_set_of_the_hub_is_read_at_its_revision(work: Path, toy: Toy, hub: list[dict[str, Any]]) -> None:
    options = Train(("own/er",), PairOptions(revision="v1"), ModelOptions(base=str(toy.base), max_tokens=120))
    prepared = prepare(options)
    assert (prepared.pairs, prepared.out) == (ROWS, Path("models/er"))
    assert [source.revision for source in prepared.recipe.sources] == ["v1"]
    assert hub[0]["revision"] == COMMIT


def test_other_pairs_measure_the_result_without_prompts_that_were_learnt_from(work: Path, toy: Toy) -> None:
    write_lines(work / "my.jsonl", [strings(i) for i in range(100)])
    write_lines(work / "test.jsonl", [strings(i) for i in range(90, 130)])
    options = Train(
        ("my.jsonl",),
        PairOptions(validation=Path("test.jsonl")),
        ModelOptions(base=str(toy.base), max_tokens=120),
    )
    prepared = prepare(options)
    assert prepared.validation is not None
    assert [pair.prompt for pair in prepared.validation] == [f"Question {i}?" for i in range(100, 130)]
    assert prepared.overlap == 10
    held_out = read_pairs(work / "my.jsonl")[:20]
    halves = part(prepared, held_out)
    assert (list(halves.calibration), list(halves.measured)) == (held_out, list(prepared.validation))
    card = card_text(prepared, halves, held_out)
    assert "Measured on 30 pairs of a file of their own (10 others share a prompt with these" in card


def test_pairs_bring_their_domains_and_options_win_over_recipes(work: Path, toy: Toy) -> None:
    write_lines(work / "my.jsonl", [strings(i) | {"domain": ("safety", "cooking")[i % 2]} for i in range(40)])
    (work / "part.yaml").write_text("optimization: {epochs: 9, peak_lr: 0.5}")
    model = ModelOptions(
        base=str(toy.base), max_tokens=120, recipe="part.yaml", epochs=2, set=("spec.domains.cooking=Tastier?",)
    )
    recipe = prepare(Train(("my.jsonl",), model=model)).recipe
    assert recipe.spec.domains == {
        "general": "Select the best response.",
        "safety": "Which response is safer?",
        "cooking": "Tastier?",
    }
    assert (recipe.optimization.epochs, recipe.optimization.peak_lr) == (2, 0.5)
    one = Train(("my.jsonl",), PairOptions(domain="chat", instruction="Which is funnier?"), model)
    recipe = prepare(one).recipe
    assert (recipe.spec.default_domain, recipe.spec.domains["chat"]) == ("chat", "Which is funnier?")
    assert [source.domain for source in recipe.sources] == ["chat"]


@pytest.mark.slow
def test_forms_become_models_that_answer_over_http(
    work: Path, toy: Toy, hub: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command each, and one service for all. The others differ in nothing but how they are read: tested above."""
    names = []
    several = [SOURCES[name] for name in ("JSON lines, UltraFeedback", "JSON lines, HH transcripts", "Parquet")]
    for number, (name, write, row) in enumerate(several):
        (work / str(number)).mkdir()
        pairs = write(work / str(number) / name, [row(i) for i in range(ROWS)])
        assert learn(toy, pairs, "--out", f"models/form-{number}") == 0
        names.append(f"form-{number}")
    assert learn(toy, "own/er", "--revision", "v1", "--out", "models/hub") == 0
    others = ",".join(str(work / "models" / name) for name in names)
    monkeypatch.chdir(REPOSITORY)
    with started(work / "models/hub", more_models=others) as service:
        for name in [*names, "hub"]:
            body = {"prompt": "Question 7777?", "response_a": BETTER, "response_b": WORSE, "model": name}
            answer = service.post("/v1/compare", body).json()
            assert answer["preferred"] == "a", (name, answer)
            assert answer["model"].startswith(f"{name}@")


def test_one_command_makes_a_measured_bundle_with_its_card(
    work: Path, toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write_lines(work / "pairs.jsonl", [strings(i) for i in range(240)])
    assert train(toy, pairs, "--set", "held_out_fraction=0.49") == 0
    out = capsys.readouterr().out
    manifest, card = read_manifest(work / "models/pairs"), (work / "models/pairs/README.md").read_text()
    assert "TINYRM_MODEL=models/pairs tinyrm serve" in out
    assert manifest.identity in out
    assert manifest.identity in card
    # Measured on pairs that the calibration did not see; neither was learnt from.
    measured, calibrated = manifest.evaluation["domains"]["all"]["pairs"], manifest.calibration
    assert calibrated is not None
    assert calibrated.held_out
    assert measured + calibrated.pairs == len(read_pairs(work / "runs/pairs/held_out.jsonl"))
    assert f"the temperature was fitted on {calibrated.pairs} other held-out pairs" in card
    assert f"on {measured} held-out pairs:" in out
    # The record of the run is in the bundle, with what was chosen.
    assert manifest.provenance.recipe["optimization"]["max_steps"] == 2
    assert [path.name for path in (work / "models").iterdir()] == ["pairs"]


@pytest.mark.slow
def test_a_command_is_continued_and_nothing_is_overwritten(
    work: Path, toy: Toy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = write_lines(work / "my.jsonl", [strings(i) for i in range(40)])

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.finetune.bundle.export_bundle", interrupt)
        assert train(toy, pairs) == 130
    assert "with --resume continues" in capsys.readouterr().err
    assert list((work / "models").iterdir()) == []
    assert train(toy, pairs) == 2
    assert "with --resume to continue it" in capsys.readouterr().err
    assert train(toy, pairs, "--resume") == 0  # models/my, by the name of the pairs
    # So few held-out pairs are not parted, and the card says so.
    assert "the same that calibration used" in (work / "models/my/README.md").read_text()
    assert train(toy, pairs, "--resume") == 2
    assert "models/my is there" in capsys.readouterr().err
    # What was trained may be the base of the next run, which asks what it asked.
    again = prepare(Train((pairs,), model=ModelOptions(base="runs/my", out=Path("models/again"), max_tokens=120)))
    assert (again.recipe.head, again.recipe.new_head) == ("cloze", False)
    assert again.recipe.output_dir == Path("runs/again")
    with monkeypatch.context() as patch:
        patch.setattr("training.finetune.bundle.export_bundle", interrupt)
        assert train(toy, pairs, "--fresh", "--seed", "3") == 130
    assert (work / "models/my/manifest.json").is_file()  # until there is another


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "gives no pairs"),
        (json.dumps(strings(1)), "1 pair to 1 prompt"),
        ((json.dumps(strings(1)) + "\n") * 9, "1 pair to 1 prompt (8 duplicate left out)"),
        ('{"text": "x"}', "line 1"),
        ("%PDF-1.4", "no file of pairs: its name must end in .parquet, .jsonl"),
    ],
)
def test_pairs_that_cannot_be_learnt_from_are_refused(
    work: Path, toy: Toy, capsys: pytest.CaptureFixture[str], content: str, words: str
) -> None:
    name = "my.pdf" if content.startswith("%PDF") else "my.jsonl"
    (work / name).write_text(content)
    assert train(toy, name) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (work / "models").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["none.jsonl"], "there is my.jsonl"),
        (["my.jsonl", "--out", "models/my model"], "'my model' must begin with"),
        (["my.jsonl", "--out", "elsewhere"], "exists and is not a bundle"),
        (["my.jsonl", "--revision", "main"], "--revision is for a data set on the hub"),
        (["my.jsonl", "--set", "optimization.peak_rl=1"], "did you mean `peak_lr`?"),
        (["my.jsonl", "--set", "optimization"], "write KEY=VALUE"),
        (["my.jsonl", "--set", "task=[a]"], "`task` must be one of"),
        (["my.jsonl", "--set", "output_dir=models/my"], "output_dir is models/my, and the bundle replaces models/my"),
        (["my.jsonl", "--set", "output_dir=models/my/run"], "name two folders"),
        (["my.jsonl", "--reads", "set", "--recipe", "paper/base-chat"], "sets `head`"),
        (["my.jsonl", "--recipe", "from_scratch/1-tokenizer"], "task 'tokenizer'"),
        (["my.jsonl", "--max-tokens", "9000"], "positions"),
        (["my.jsonl", "--validation", "my.jsonl"], "no pair with a prompt that PAIRS does not have"),
        (["my.jsonl", "--fresh", "--resume"], "give one of them"),
        (["finetune"], "is a recipe, which runs as it is"),
    ],
)
def test_a_command_that_must_fail_fails_before_training(
    work: Path, toy: Toy, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    write_lines(work / "my.jsonl", [strings(i) for i in range(40)])
    (work / "elsewhere").mkdir()
    (work / "elsewhere" / "file").touch()
    assert train(toy, *options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (work / "runs").exists()


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("trian", "did you mean train"),
        ("paper/large-chatt", "did you mean paper/large-chat"),
        ("my.jsonll", "did you mean my.jsonl"),
        ("owner/name", "needs the name of the bundle: --out"),
    ],
)
def test_an_unknown_first_word_names_what_is_near(
    work: Path, capsys: pytest.CaptureFixture[str], word: str, words: str
) -> None:
    (work / "my.jsonl").touch()
    assert main([word]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_bundle_is_neither_pairs_nor_a_base(
    work: Path, bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(work / "my.jsonl", [strings(i) for i in range(40)])
    assert main(["train", str(bundle_folder)]) == 2
    assert "is a bundle, not pairs" in capsys.readouterr().err
    assert main(["train", "my.jsonl", "--base", str(bundle_folder)]) == 2
    assert "holds a graph and no weights to train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.51, 0.7, ""), (0.29, 0.8, "may be chance"), (0.1, 0.4, "worse than chance")],
)
def test_an_accuracy_that_may_be_chance_is_called_that(low: float, high: float, words: str) -> None:
    assert words in "".join(uncertain(Share(value=(low + high) / 2, low=low, high=high)))
    assert bool(words) == bool(uncertain(Share(value=(low + high) / 2, low=low, high=high)))


@pytest.mark.parametrize(
    ("epochs", "words"), [pytest.param("3", "about 5 steps", marks=pytest.mark.slow), (".nan", "epochs")]
)
def test_the_last_word_on_epochs_decides(
    work: Path, toy: Toy, capsys: pytest.CaptureFixture[str], epochs: str, words: str
) -> None:
    write_lines(work / "my.jsonl", [strings(i) for i in range(40)])
    options = ["--base", str(toy.base), "--epochs", "2", "--set", f"optimization.epochs={epochs}", "--dry-run"]
    assert main(["train", "my.jsonl", *options]) == (0 if epochs == "3" else 2)
    printed = capsys.readouterr()
    assert words in printed.out + printed.err


def test_a_dry_run_prints_what_was_chosen_and_writes_nothing(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_lines(work / "my.jsonl", [strings(i) for i in range(40)])
    part = work / "part.yaml"
    part.write_text("optimization: {peak_lr: 1.0e-5}\nfrozen_layers: 0")
    words = ["--recipe", str(part), "--domain", "safety", "--instruction", "Which is kinder?", "--epochs", "2"]
    base = ["--base", "sentence-transformers/all-MiniLM-L6-v2"]
    assert main(["train", "my.jsonl", "--dry-run", *base, *words]) == 0
    plan = capsys.readouterr().out
    assert "Which is kinder?" in plan
    assert "held_out_fraction" in plan
    # What the user set is not among what was chosen.
    chosen = plan.partition("chosen, and why:")[2]
    assert "optimization.batch_size" in chosen
    assert not any(key in chosen for key in ("peak_lr", "frozen_layers", "optimization.epochs"))
    assert "1.000e-05" in plan
    assert "about 3 steps in all" in plan, "of the two epochs, 30 pairs and 16 a step"
    # Each line is true of a model that reads sets: it has no orders, labels or loss of a cloze.
    assert "head          set, all responses to a prompt beside each other" in plan
    assert "256 tokens for the prompt with each response in training, 512 in serving" in plan
    assert not any(f"\n  {name} " in plan for name in ("template", "orders", "loss"))
    assert sorted(path.name for path in work.iterdir()) == ["my.jsonl", "part.yaml"]


def test_a_whole_recipe_with_a_base_leaves_nothing_to_choose(
    work: Path, toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pairs that are named twice are counted once."""
    write_lines(work / "my.jsonl", [strings(i) for i in range(40)])
    words = ["my.jsonl", "my.jsonl", "--recipe", "starter/pairs", "--base", str(toy.base), "--hardware", "laptop"]
    assert main(["train", "--dry-run", *words]) == 0
    plan = capsys.readouterr().out
    assert plan.endswith("chosen, and why:\n  nothing: the base and a whole recipe are given\n")
    assert plan.count("my.jsonl ") == 2


@pytest.mark.parametrize("price", ["-1", "nan"])
def test_a_price_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], price: str) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "starter/pairs", "--hardware", "h100", "--price-per-hour", price])
    assert "must be at least 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["RECIPE=my.yaml", "DATA=pairs"], "-m training my.yaml --data pairs --resume"),
        (["RECIPE=my.yaml", "RESUME=0"], "-m training my.yaml --data data"),
        (["RECIPE=my.yaml", "FRESH=1"], "-m training my.yaml --data data --fresh"),
        (
            ["PAIRS=my.jsonl", "BASE=some/base", "NAME=mine"],
            "-m training my.jsonl --base some/base --out models/mine --resume",
        ),
        # The name of the bundle that is served by default is not a place to train into.
        (["PAIRS=my.jsonl", "RESUME=0"], "-m training my.jsonl"),
    ],
)
def test_the_verb_train_calls_the_command(words: list[str], command: str) -> None:
    # Under `make test` a make inherits the outer one's flags and prints the folders that it enters and leaves.
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "train", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert " ".join(done.stdout.splitlines()[-1].split()).endswith(f"python {command}")


@pytest.mark.slow
def test_several_processes_train_one_bundle(work: Path, toy: Toy) -> None:
    pairs = write_lines(work / "my.jsonl", [strings(i) for i in range(40)])
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "training", pairs]
    options = [
        "--base",
        str(toy.base),
        "--out",
        "models/mine",
        "--max-tokens",
        "120",
        "--set",
        "optimization.max_steps=2",
    ]
    done = subprocess.run(
        [sys.executable, *launcher, *options],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("tinyrm serve") == 1
    recipe = read_manifest(work / "models/mine").provenance.recipe["optimization"]
    # Both had a part of each step: 16 pairs, two orders of each, over two processes.
    assert (recipe["batch_size"], recipe["micro_batch_size"]) == (32, 16)
    assert "over 2 processes" in done.stderr
