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
from matplotlib.ticker import FuncFormatter

from loadtests.payloads import read_payloads
from tests.e2e.traffic import traffic
from tests.support.processes import STARTER, started
from tests.support.prometheus import PanelQuery, Prometheus, dashboards, scraping
from tinyrm.command_line import parse

WINDOW_S, STEP_S = 10, 1
COLUMNS, ROW_INCHES = 24, 0.36
# Above what is drawn, for the legend.
HEADROOM = 0.2
COLOURS = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff"]
STYLE: Any = {
    "figure.facecolor": "#111217",
    "axes.facecolor": "#181b1f",
    "axes.edgecolor": "#2a2d33",
    "text.color": "#ccccdc",
    "axes.labelcolor": "#ccccdc",
    "xtick.color": "#8e8e9a",
    "ytick.color": "#8e8e9a",
    "grid.color": "#2a2d33",
    "axes.grid": True,
    "font.size": 7,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "legend.facecolor": "#181b1f",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.7,
    "legend.fontsize": 6,
    "lines.linewidth": 1,
    "axes.prop_cycle": cycler(color=COLOURS),
}
# Grafana's units -> how a number is written.
Array = np.ndarray[Any, np.dtype[np.float64]]
UNITS: dict[str, Callable[[float], str]] = {
    "s": lambda v: f"{v * 1e3:.3g} ms" if abs(v) < 1 else f"{v:.3g} s",
    "percentunit": lambda v: f"{v * 100:.3g} %",
    "bytes": lambda v: f"{v / 2**20:.0f} MiB",
    "flops": lambda v: f"{v / 1e9:.3g} G/s",
    "reqps": lambda v: f"{v:.3g} req/s",
    "ops": lambda v: f"{v:.3g} /s",
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
        started(STARTER) as service,
        scraping(service.port, Path(data)) as prometheus,
    ):
        with traffic(service, read_payloads().comparisons):
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
            np.array([float(at) - start for at, _ in found["values"]]),
            np.array([float(value) for _, value in found["values"]]),
        )
        for found in prometheus.query_range(query.expression(f"{WINDOW_S}s"), start, end, STEP_S)
    ]


def draw(name: str, dashboard: dict[str, Any], fetch: Callable[[PanelQuery], list[Series]], folder: Path) -> None:
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12, (rows + 1) * ROW_INCHES))
        figure.suptitle(
            f"{dashboard['title']}   (the dashboard's queries in a drawing of our own, not Grafana's)",
            fontsize=10,
            y=0.995,
        )
        for panel in dashboard["panels"]:
            axes = figure.add_axes(place(panel["gridPos"], rows + 1), title=panel["title"])
            series = [one for target in panel["targets"] for one in fetch(PanelQuery(name, panel, target))]
            KINDS[panel["type"]](axes, panel, series)
        figure.savefig(folder / f"dashboard-{name}.png", dpi=90)
        plt.close(figure)


def place(grid: dict[str, int], rows: int) -> tuple[float, float, float, float]:
    """Return left, bottom, width and height as shares of the picture, with room for a title and axis labels."""
    bottom = rows - 1 - grid["y"] - grid["h"] + 0.7
    return (grid["x"] + 1.3) / COLUMNS, bottom / rows, (grid["w"] - 1.6) / COLUMNS, (grid["h"] - 1.6) / rows


def number(axes: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
    """Draw the last value, or the legend if the panel shows that, in the colour of its bound."""
    last = series[0].values[-1]
    as_name = panel["options"]["textMode"] == "name"
    text = series[0].legend if as_name else "no data" if math.isnan(last) else unit(panel)(last)
    axes.text(0.5, 0.45, text, ha="center", va="center", fontsize=11 if as_name else 17, color=colour(panel, last))
    axes.set_axis_off()


def lines(axes: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    if "stacking" in defaults["custom"]:
        every = np.unique(np.concatenate([one.seconds for one in series]))
        stacked = [np.interp(every, one.seconds, np.nan_to_num(one.values)) for one in series]
        axes.stackplot(every, stacked, labels=[one.legend for one in series], alpha=0.7)
    else:
        for one in series:
            axes.plot(one.seconds, one.values, label=one.legend, clip_on=False, zorder=3)  # also along the border
    for step in defaults.get("thresholds", {}).get("steps", [])[1:]:
        if step["value"] <= axes.get_ylim()[1]:
            axes.axhline(step["value"], linestyle="--", color=step["color"], linewidth=0.8)
    low, high = axes.get_ylim()
    low = defaults.get("min", low)
    axes.set_ylim(low, defaults.get("max", high + HEADROOM * (high - low)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: unit(panel)(value)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    axes.legend(loc="upper left", ncols=4)


def heat(axes: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
    """Draw buckets. Each holds those below it: the one before is subtracted."""
    ordered = sorted(series, key=lambda one: float(one.labels["le"]))
    counts = np.diff(np.stack([one.values for one in ordered]), axis=0, prepend=0)
    borders = [float(one.labels["le"]) for one in ordered]
    axes.grid(visible=False)
    axes.pcolormesh(ordered[0].seconds, np.arange(len(borders)), np.where(counts > 0, counts, np.nan), cmap="turbo")
    shown = range(0, len(borders), max(1, len(borders) // 8))
    texts = ["more" if math.isinf(borders[place]) else unit(panel)(borders[place]) for place in shown]
    axes.set_yticks(list(shown), texts)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))


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
