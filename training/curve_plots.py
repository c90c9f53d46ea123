"""Draw the learning curves of runs."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from tinyrm.pictures import COLOURS, new_figure, save
from training.curves import Curves, Points, smoothed


def draw(runs: Sequence[Curves], path: Path) -> None:
    """Draw the losses, the held-out accuracy if there is one, and the learning rate of runs, one colour each.

    Raises InvalidInput if the file is neither PNG nor SVG.
    """
    has_accuracy = any("accuracy" in run.held_out for run in runs)
    heights = (4, 2, 1) if has_accuracy else (4, 1)
    figure = new_figure(8, sum(heights) + 0.5)
    losses, *middle, rates = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    for number, run in enumerate(runs):
        draw_losses(losses, run, number, is_alone=len(runs) == 1)
        for axes in middle:
            draw_points(axes, run.held_out.get("accuracy", []), number)
        if run.rate:
            rates.plot(*zip(*run.rate, strict=True), color=colour(number), linewidth=1)
    losses.set_ylabel("loss")
    losses.legend(fontsize=8)
    for axes in middle:
        axes.set_ylabel("held-out accuracy")
    rates.set(xlabel="step", ylabel="rate")
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in (losses, *middle, rates):
        axes.grid(visible=True, alpha=0.2)
    save(figure, path)


def draw_losses(axes: Axes, run: Curves, number: int, *, is_alone: bool) -> None:
    """Draw the training loss as a line, with its raw values behind it, and the held-out loss as points."""
    if run.loss:
        axes.plot(*zip(*run.loss, strict=True), color=colour(number), linewidth=0.6, alpha=0.3)
        label = "training, smoothed" if is_alone else run.name
        axes.plot(*zip(*smoothed(run.loss), strict=True), color=colour(number), linewidth=1.6, label=label)
    own = "held-out" if is_alone else f"{run.name}, held-out"
    draw_points(axes, run.held_out.get("loss", []), number, label=own)


def draw_points(axes: Axes, points: Points, number: int, label: str | None = None) -> None:
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, "o--", markersize=4, linewidth=1, color=colour(number), label=label)


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
