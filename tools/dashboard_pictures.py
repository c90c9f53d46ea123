"""python -m tools.dashboard_pictures: draw the dashboards in docs/images, under load that is made for them.

The numbers are the results of the panels' queries in a real Prometheus; titles, places, units and bounds are the
panels'. The drawing is our own and not Grafana's.
"""

import math
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from loadtests.payloads import read_payloads
from tests.e2e.traffic import traffic, usual_requests
from tests.support.processes import STARTER, started
from tests.support.prometheus import PanelQuery, Prometheus, dashboards, scraping
from tinyrm.command_line import parse

WINDOW_S, STEP_S = 10, 1
# A load that two cores serve within the objectives: callers, and the mean pause of each between two requests.
CALLERS, PAUSE_S = 4, 0.6
COLUMNS, WIDTH_INCHES, ROW_INCHES, DPI = 24, 13, 0.42, 110
# Above what is drawn, for each row of the legend, as a share of what is drawn.
HEADROOM = 0.15
# Of a legend, in the width of one of Grafana's columns.
CHARACTERS = 5.5
TICK_S = 30
COLOURS = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff"]
STYLE: Any = {
    "figure.facecolor": "#111217",
    "axes.facecolor": "#181b1f",
    "axes.edgecolor": "#2a2d33",
    "text.color": "#e0e0ea",
    "axes.labelcolor": "#e0e0ea",
    "xtick.color": "#b4b4c0",
    "ytick.color": "#b4b4c0",
    "grid.color": "#2a2d33",
    "axes.grid": True,
    "font.size": 11,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "legend.facecolor": "#181b1f",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.7,
    "legend.fontsize": 10,
    "legend.columnspacing": 1.0,
    "legend.handlelength": 1.2,
    "lines.linewidth": 1.6,
    "axes.prop_cycle": cycler(color=COLOURS),
}
# Grafana's units -> how a number is written.
Array = np.ndarray[Any, np.dtype[np.float64]]
UNITS: dict[str, Callable[[float], str]] = {
    "s": lambda v: f"{v * 1e3:.3g} ms" if abs(v) < 1 else f"{v:.3g} s",
    "percentunit": lambda v: f"{v * 100:.3g} %" if abs(v) < 10 else f"{v * 100:,.0f} %",
    "bytes": lambda v: f"{v / 2**20:.0f} MiB",
    "flops": lambda v: f"{v / 1e9:.3g} G/s",
    "reqps": lambda v: f"{v:.3g}/s",
    "ops": lambda v: f"{v:.3g}/s",
}


@dataclass(frozen=True)
class Series:
    """legend: as the panel writes it."""

    legend: str
    labels: dict[str, str]
    seconds: Array
    values: Array


@dataclass(frozen=True)
class Options:
    """Draw the dashboards under load that is made for them."""

    folder: Path = Path("docs/images")
    """Folder for the pictures."""
    seconds: float = 150
    """How long to load the service."""


def main(arguments: list[str] | None = None) -> int:
    options = parse(Options, arguments, prog="python -m tools.dashboard_pictures")
    with (
        tempfile.TemporaryDirectory() as data,
        started(STARTER, peak_gflops_per_s=0) as service,  # measured, for MFU
        scraping(service.port, Path(data)) as prometheus,
    ):
        with traffic(service, read_payloads().comparisons, CALLERS, usual_requests, PAUSE_S):
            time.sleep(options.seconds)
            end = time.time()
        fetch = partial(fetch_series, prometheus, end - options.seconds + 2 * WINDOW_S, end)
        for name, dashboard in dashboards().items():
            draw(name, dashboard, fetch, options.folder)
    return 0


def fetch_series(prometheus: Prometheus, start: float, end: float, query: PanelQuery) -> list[Series]:
    """Return what Prometheus has for one query of a panel."""

    def legend(labels: dict[str, str]) -> str:
        return re.sub(r"\{\{(\w+)\}\}", lambda label: labels.get(label[1], ""), query.target["legendFormat"])

    return [
        Series(
            legend(found["metric"]),
            found["metric"],
            np.array([float(at) for at, _ in found["values"]]),
            np.array([float(value) for _, value in found["values"]]),
        )
        for found in prometheus.query_range(query.expression(f"{WINDOW_S}s"), start, end, STEP_S)
    ]


def draw(name: str, dashboard: dict[str, Any], fetch: Callable[[PanelQuery], list[Series]], folder: Path) -> None:
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(WIDTH_INCHES, (rows + 1) * ROW_INCHES))
        figure.text(0.01, 1 - 0.5 / (rows + 1), dashboard["title"], fontsize=17, weight="bold", va="center")
        note = "the dashboard's queries in a drawing of our own, not Grafana's"
        figure.text(0.99, 1 - 0.5 / (rows + 1), note, fontsize=10, ha="right", va="center", color="#b4b4c0")
        for panel in dashboard["panels"]:
            axes = figure.add_axes(place(panel["gridPos"], rows + 1, panel["type"]), title=panel["title"])
            found = [one for target in panel["targets"] for one in fetch(PanelQuery(name, panel, target))]
            if series := [one for one in found if np.isfinite(one.values).any()]:
                KINDS[panel["type"]](axes, panel, series)
            else:
                axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes, color="#b4b4c0")
                axes.set(xticks=[], yticks=[])
        figure.savefig(folder / f"dashboard-{name}.png", dpi=DPI)
        plt.close(figure)


def place(grid: dict[str, int], rows: int, kind: str) -> tuple[float, float, float, float]:
    """Return left, bottom, width and height as shares of the picture, with room for a title and axis labels."""
    left, below = (0.3, 0.25) if kind == "stat" else (1.45, 0.85)
    right = 0.9 if kind == "heatmap" else 0.3
    bottom = rows - 1 - grid["y"] - grid["h"] + below
    height = grid["h"] - below - 0.95
    return (grid["x"] + left) / COLUMNS, bottom / rows, (grid["w"] - left - right) / COLUMNS, height / rows


def number(axes: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
    """Draw the last value over its course, or the legend if the panel shows that, in the colour of its bound."""
    one = series[0]
    last = one.values[np.isfinite(one.values)][-1]
    as_name = panel["options"]["textMode"] == "name"
    shade = colour(panel, last)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    if not as_name:
        high = max(np.nanmax(one.values), 0) or 1
        axes.fill_between(one.seconds, one.values / high * 0.35, color=shade, alpha=0.25, linewidth=0)
        axes.set(ylim=(0, 1), xlim=(one.seconds[0], one.seconds[-1]))
    text = one.legend if as_name else unit(panel)(last)
    size = 17 if as_name else 27
    axes.text(0.5, 0.55, text, ha="center", va="center", fontsize=size, color=shade, transform=axes.transAxes)


def lines(axes: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    if "stacking" in defaults["custom"]:
        every = np.unique(np.concatenate([one.seconds for one in series]))
        stacked = [np.interp(every, one.seconds, np.nan_to_num(one.values)) for one in series]
        axes.stackplot(every, stacked, labels=[one.legend for one in series], alpha=0.7)
    else:
        for one in series:
            axes.plot(one.seconds, one.values, label=one.legend, zorder=3)
    for step in defaults.get("thresholds", {}).get("steps", [])[1:]:
        if step["value"] <= axes.get_ylim()[1]:
            axes.axhline(step["value"], linestyle="--", color=step["color"], linewidth=1)
    longest = max(len(one.legend) for one in series) + 5
    columns = max(1, int(panel["gridPos"]["w"] * CHARACTERS // longest))
    rows_of_legend = math.ceil(len(series) / columns)
    low, high = axes.get_ylim()
    low, high = defaults.get("min", low), high if any(one.values.any() for one in series) else 1
    axes.set_ylim(low, defaults.get("max", high) + HEADROOM * rows_of_legend * (high - low))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: unit(panel)(value)))
    clock(axes, panel, series)
    axes.legend(loc="upper left", ncols=columns)


def heat(axes: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
    """Draw the buckets that hold something, with a scale. Each holds those below it: the one before is subtracted."""
    ordered = sorted(series, key=lambda one: float(one.labels["le"]))
    counts = np.diff(np.stack([one.values for one in ordered]), axis=0, prepend=0)
    used = np.flatnonzero((counts > 0).any(axis=1))
    shown = range(max(used[0] - 1, 0), min(used[-1] + 2, len(ordered)))
    borders = [float(one.labels["le"]) for one in ordered]
    axes.grid(visible=False)
    cells = np.where(counts > 0, counts, np.nan)[shown.start : shown.stop]
    drawn = axes.pcolormesh(ordered[0].seconds, np.arange(shown.start, shown.stop), cells, cmap="turbo", vmin=0)
    texts = ["more" if math.isinf(borders[row]) else f"≤ {unit(panel)(borders[row])}" for row in shown]
    step = max(1, len(shown) // 8)
    axes.set_yticks(list(shown)[::step], texts[::step])
    clock(axes, panel, series)
    scale = axes.figure.colorbar(drawn, ax=axes, pad=0.015, fraction=0.04)
    scale.set_label(f"in {WINDOW_S} s")


def clock(axes: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
    """Write the time of day below the axis, less often below a narrow one."""
    tick_s = TICK_S if panel["gridPos"]["w"] > COLUMNS // 3 else 2 * TICK_S
    start, end = min(one.seconds[0] for one in series), max(one.seconds[-1] for one in series)
    axes.set_xlim(start, end)
    axes.set_xticks(np.arange(math.ceil(start / tick_s) * tick_s, end - 0.07 * (end - start), tick_s))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: time.strftime("%H:%M:%S", time.gmtime(at))))


KINDS = {"stat": number, "timeseries": lines, "heatmap": heat}


def unit(panel: dict[str, Any]) -> Callable[[float], str]:
    return UNITS.get(
        panel["fieldConfig"]["defaults"]["unit"], lambda value: f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    )


def colour(panel: dict[str, Any], value: float) -> str:
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    names = {"green": "#73bf69", "yellow": "#f2cc0c", "red": "#f2495c"}
    return names[[step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]]


if __name__ == "__main__":
    sys.exit(main())
