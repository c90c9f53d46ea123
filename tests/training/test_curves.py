"""Test that the curves of a real run are read, drawn and described, and that overfitting is named."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from tests.training.conftest import Toy, read_log
from tinyrm.errors import InvalidInput
from training.__main__ import main
from training.curves import Curves, describe, read_all, read_curves, smoothed, verdict
from training.stages.cloze import train_cloze


@pytest.fixture(scope="module")
def run(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "toy"
    size = {"max_steps": 12, "eval_steps": 4, "save_steps": 100}
    train_cloze(toy.recipe(folder, size, trainer={"logging_steps": 2}), toy.data, resume=False)
    return folder


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collect every saved figure, still open."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: object, **options: object) -> None:
        saved.append(figure)
        save(figure, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def test_the_points_are_those_of_the_log(run: Path) -> None:
    curves = read_curves(run, "toy")
    log = read_log(run)
    assert curves.loss == [(e["step"], e["loss"]) for e in log if "loss" in e]
    assert [step for step, _ in curves.loss] == [2, 4, 6, 8, 10, 12]
    assert [step for step, _ in curves.held_out["loss"]] == [4, 8, 12], "the last evaluation is logged twice"
    assert curves.held_out["accuracy"][-1][1] == log[-1]["eval_accuracy"]


def test_a_run_is_drawn(run: Path, tmp_path: Path, figures: list[Figure], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curves", str(run), "--out", str(tmp_path / "new" / "curves.png")]) == 0
    (figure,) = figures
    losses, accuracy, rates = figure.axes
    raw, smooth, held_out = losses.lines
    curves = read_curves(run, "toy")
    for line, points in ((raw, curves.loss), (smooth, smoothed(curves.loss)), (held_out, curves.held_out["loss"])):
        assert line.get_xydata().tolist() == [list(point) for point in points]
    assert accuracy.lines[0].get_xydata().tolist() == [list(point) for point in curves.held_out["accuracy"]]
    assert rates.lines[0].get_xydata().tolist() == [list(point) for point in curves.rate]
    assert imread(tmp_path / "new" / "curves.png").std() > 0
    shown = capsys.readouterr().out
    assert shown.startswith("toy:\n  training loss ")
    assert f"held-out loss {curves.held_out['loss'][-1][1]:.4f} at the last step, 12" in shown
    assert main(["curves", str(run), "--json"]) == 0
    (printed,) = json.loads(capsys.readouterr().out)["runs"]
    assert printed["loss"] == [list(point) for point in curves.loss]
    assert printed["verdict"] == verdict(curves)


def test_several_runs_have_a_colour_and_a_name_each(run: Path, tmp_path: Path, figures: list[Figure]) -> None:
    copy = tmp_path / "other" / "toy"
    copy.mkdir(parents=True)
    (copy / "log.jsonl").write_text((run / "log.jsonl").read_text())
    pictures = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for picture in pictures:
        assert main(["curves", str(run), str(copy / "log.jsonl"), "--out", str(picture)]) == 0
    labels = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert labels[2:] == ["other/toy", "other/toy, held-out"]
    assert labels[0] == f"{run.parent.name}/toy"
    assert len({line.get_color() for line in figures[0].axes[0].lines}) == 2
    assert ET.parse(pictures[0]).getroot().tag.endswith("svg")
    assert pictures[0].read_bytes() == pictures[1].read_bytes(), "a picture does not change by itself"


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([0.7, 0.6, 0.65], "held-out loss rises after step 20, by 8.3% until the end: it overfits"),
        ([0.7, 0.65, 0.6], "still falls"),
        ([0.7, 0.6, 0.603], "is level"),
        ([0.7], "fewer than two evaluations"),
        ([], "fewer than two evaluations"),
    ],
)
def test_the_held_out_loss_in_words(losses: list[float], words: str) -> None:
    points = [(10 * (i + 1), loss) for i, loss in enumerate(losses)]
    curves = Curves("run", [(1, 0.7)], [], {"loss": points} if points else {})
    assert words in verdict(curves)
    assert describe(curves).endswith(verdict(curves))


def test_the_best_accuracy_is_the_largest() -> None:
    curves = Curves("run", [], [], {"accuracy": [(10, 0.6), (20, 0.7), (30, 0.65)]})
    assert "held-out accuracy 0.6500 at the last step, 30; best 0.7000 at step 20" in describe(curves)


def test_smoothing_keeps_a_constant_and_follows_a_change() -> None:
    constant = [(step, 2.0) for step in range(0, 1000, 10)]
    assert [value for _, value in smoothed(constant)] == pytest.approx([2.0] * 100)
    jump = [(step, float(step >= 500)) for step in range(0, 1000, 10)]
    values = dict(smoothed(jump))
    assert values[490] == 0
    assert 0 < values[500] < values[530] < values[990] <= 1
    # Three values of 10 steps each are a half-life.
    assert values[520] == pytest.approx(0.5, abs=0.02)


def test_what_is_no_log_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curves", str(tmp_path)]) == 2
    assert f"{tmp_path / 'log.jsonl'} is not the log of a run" in capsys.readouterr().err
    (tmp_path / "log.jsonl").write_text("[1]\n")
    assert main(["curves", str(tmp_path)]) == 2
    assert "is not the log of a run" in capsys.readouterr().err
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1, "epoch": 0.1}) + "\n")
    assert main(["curves", str(tmp_path)]) == 2
    assert "has no losses yet" in capsys.readouterr().err
    assert main(["curves"]) == 2


def test_another_format_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curves", str(run), "--out", str(tmp_path / "curves.pdf")]) == 2
    assert "a picture is .png or .svg" in capsys.readouterr().err
    assert read_all([run])[0].name == "toy"


@pytest.mark.parametrize(
    "entry", ['{"step": null, "loss": 1}', '{"step": 1, "loss": null}', '{"step": 1, "loss": "x"}', "3"]
)
def test_a_damaged_log_is_named(tmp_path: Path, entry: str) -> None:
    (tmp_path / "log.jsonl").write_text(entry + "\n")
    with pytest.raises(InvalidInput, match="is not the log of a run"):
        read_all([tmp_path])


def test_a_loss_that_was_zero_has_risen(tmp_path: Path) -> None:
    lines = ['{"step": 1, "eval_loss": 0.0}', '{"step": 2, "eval_loss": 0.5}']
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    assert "rises after step 1, by 0.5000 until the end" in describe(read_all([tmp_path])[0])
