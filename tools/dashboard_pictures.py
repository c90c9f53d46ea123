"""`python -m tools.dashboard_pictures`: the dashboards as pictures in docs/, under load that is made for them.

The numbers are what a real Prometheus answers to the panels' queries; titles, places, units and bounds are the panels'.
The drawing is our own and not Grafana's.
"""

import math
import re
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from loadtests.payloads import read_payloads
from tests.conftest import REPOSITORY
from tests.e2e.traffic import traffic
from tests.support.processes import STARTER, started
from tests.support.prometheus import Asked, Prometheus, dashboards, scraping

SECONDS, WINDOW_S, STEP_S = 150, 10, 1
COLUMNS, ROW_INCHES = 24, 0.36
# Above what is drawn, for the legend.
HEADROOM = 0.2
STYLE = {
    "figure.facecolor": "#111217", "axes.facecolor": "#181b1f", "axes.edgecolor": "#2a2d33", "text.color": "#ccccdc",
    "axes.labelcolor": "#ccccdc", "xtick.color": "#8e8e9a", "ytick.color": "#8e8e9a", "grid.color": "#2a2d33",
    "axes.grid": True, "font.size": 7, "axes.titlesize": 8, "axes.titlelocation": "left", "axes.axisbelow": True,
    "legend.facecolor": "#181b1f", "legend.edgecolor": "none", "legend.framealpha": 0.7,
    "legend.fontsize": 6, "lines.linewidth": 1,
    "axes.prop_cycle": mpl.cycler(color=["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff"]),
}  # fmt: skip
# Grafana's units -> how a number is written.
UNITS: dict[str, Callable[[float], str]] = {
    "s": lambda v: f"{v * 1e3:.3g} ms" if abs(v) < 1 else f"{v:.3g} s",
    "percentunit": lambda v: f"{v * 100:.3g} %",
    "bytes": lambda v: f"{v / 2**20:.0f} MiB",
    "flops": lambda v: f"{v / 1e9:.3g} G/s",
    "reqps": lambda v: f"{v:.3g} req/s",
    "ops": lambda v: f"{v:.3g} /s",
}

Found = list[tuple[str, dict[str, str], "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]]


def main(folder: str = "docs", seconds: str = str(SECONDS)) -> None:
    with (
        tempfile.TemporaryDirectory() as data,
        started(STARTER) as service,
        scraping(service.port, Path(data)) as prometheus,
    ):
        with traffic(service, read_payloads().comparisons):
            time.sleep(float(seconds))
            end = time.time()
        ask = partial(found, prometheus, end - float(seconds) + 2 * WINDOW_S, end)
        for name, dashboard in dashboards().items():
            draw(name, dashboard, ask, REPOSITORY / folder)


def found(prometheus: Prometheus, start: float, end: float, asked: Asked) -> Found:
    """Legend, labels, seconds and values of each series."""
    answer = prometheus.query_range(asked.expression(f"{WINDOW_S}s"), start, end, STEP_S)
    return [
        (legend(asked.target["legendFormat"], one["metric"]), one["metric"],
         np.array([float(at) - start for at, _ in one["values"]]), np.array([float(v) for _, v in one["values"]]))
        for one in answer
    ]  # fmt: skip


def legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda label: labels.get(label[1], ""), template)


def draw(name: str, dashboard: dict[str, Any], ask: Callable[[Asked], Found], folder: Path) -> None:
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=(12, (rows + 1) * ROW_INCHES))
        figure.suptitle(
            f"{dashboard['title']}   (the dashboard's queries in a drawing of our own, not Grafana's)",
            fontsize=10,
            y=0.995,
        )
        for panel in dashboard["panels"]:
            axes = figure.add_axes(place(panel["gridPos"], rows + 1), title=panel["title"])
            series = [one for target in panel["targets"] for one in ask(Asked(name, panel, target))]
            KINDS[panel["type"]](axes, panel, series)
        figure.savefig(folder / f"dashboard-{name}.png", dpi=90)
        plt.close(figure)


def place(grid: dict[str, int], rows: int) -> tuple[float, float, float, float]:
    """Left, bottom, width and height as shares of the picture, with room for a title and the axes' numbers."""
    bottom = rows - 1 - grid["y"] - grid["h"] + 0.7
    return (grid["x"] + 1.3) / COLUMNS, bottom / rows, (grid["w"] - 1.6) / COLUMNS, (grid["h"] - 1.6) / rows


def number(axes: Axes, panel: dict[str, Any], series: Found) -> None:
    """The last value, or where the panel says so the legend, in the colour of its bound."""
    label, _, _, values = series[0]
    as_name = panel["options"]["textMode"] == "name"
    text = label if as_name else written(panel)(values[-1])
    axes.text(
        0.5, 0.45, text, ha="center", va="center", fontsize=11 if as_name else 17, color=colour(panel, values[-1])
    )
    axes.set_axis_off()


def lines(axes: Axes, panel: dict[str, Any], series: Found) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    if "stacking" in defaults["custom"]:
        every = np.unique(np.concatenate([seconds for _, _, seconds, _ in series]))
        stacked = [np.interp(every, seconds, np.nan_to_num(values)) for _, _, seconds, values in series]
        axes.stackplot(every, stacked, labels=[label for label, *_ in series], alpha=0.7)
    else:
        for label, _, seconds, values in series:
            axes.plot(seconds, values, label=label, clip_on=False, zorder=3)  # seen along the border, too
    for step in defaults.get("thresholds", {}).get("steps", [])[1:]:
        if step["value"] <= axes.get_ylim()[1]:
            axes.axhline(step["value"], linestyle="--", color=step["color"], linewidth=0.8)
    low, high = axes.get_ylim()
    low = defaults.get("min", low)
    axes.set_ylim(low, defaults.get("max", high + HEADROOM * (high - low)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(panel)(value)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    axes.legend(loc="upper left", ncols=4)


def heat(axes: Axes, panel: dict[str, Any], series: Found) -> None:
    """Buckets hold what is below them, too: what is drawn is each without the one before."""
    ordered = sorted(series, key=lambda one: float(one[1]["le"]))
    below = np.stack([values for *_, values in ordered])
    counts = np.diff(below, axis=0, prepend=0)
    borders = [float(labels["le"]) for _, labels, _, _ in ordered]
    axes.grid(visible=False)
    axes.pcolormesh(ordered[0][2], np.arange(len(borders)), np.where(counts > 0, counts, np.nan), cmap="turbo")
    shown = range(0, len(borders), max(1, len(borders) // 8))
    texts = ["more" if math.isinf(borders[place]) else written(panel)(borders[place]) for place in shown]
    axes.set_yticks(list(shown), texts)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))


KINDS = {"stat": number, "timeseries": lines, "heatmap": heat}


def written(panel: dict[str, Any]) -> Callable[[float], str]:
    return UNITS.get(
        panel["fieldConfig"]["defaults"]["unit"], lambda value: f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    )


def colour(panel: dict[str, Any], value: float) -> str:
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    names = {"green": "#73bf69", "yellow": "#f2cc0c", "red": "#f2495c"}
    return names[[step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]]


if __name__ == "__main__":
    main(*sys.argv[1:])
