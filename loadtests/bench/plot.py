"""Draw a benchmark in docs/results, such as bench.json. Runs in .venv/bench-peers, which has matplotlib."""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

STYLES = {"ours": ("-", 2.4), "plain": ("-", 1.4)}
LIMIT_DASHES = {"fp32": (6, 3), "bf16": (4, 2), "int8": (2, 2)}


def main() -> int:
    source, out = map(Path, sys.argv[1:])
    draw(json.loads(source.read_text(encoding="utf-8")), out)
    return 0


def draw(results: dict[str, Any], out: Path) -> None:
    """Draw one panel for each geometry, side by side."""
    count = len(results["geometries"])
    figure = Figure(figsize=(3 + 5.5 * count, 7.2))
    panels = figure.subplots(1, count, squeeze=False)
    names = [c["name"] for g in results["geometries"].values() for c in g["contenders"]]
    colours = dict(zip(dict.fromkeys(names), [colormaps["tab10"](place) for place in range(10)], strict=False))
    handles: dict[str, Any] = {}
    for panel, (name, geometry) in zip(panels[0], results["geometries"].items(), strict=True):
        draw_panel(panel, name, geometry, colours)
        lines, titles = panel.get_legend_handles_labels()
        handles |= dict(zip(titles, lines, strict=True))
    machine = results["machine"]
    figure.suptitle(f"Time for one sequence, batch 1\n{machine['cpu']}, {results['threads']} threads", fontsize=13)
    figure.legend(
        handles.values(), handles.keys(), loc="lower center", ncols=2 if count == 1 else 4, fontsize=8, frameon=False
    )
    figure.tight_layout(rect=(0, 0.19 if count == 1 else 0.13, 1, 1))
    figure.savefig(out, dpi=130)


def draw_panel(panel: Any, name: str, geometry: dict[str, Any], colours: dict[str, Any]) -> None:
    single = [shape for shape in geometry["shapes"] if len(shape["lengths"]) == 1]
    tokens = {shape["label"]: shape["lengths"][0] for shape in single}
    for contender in geometry["contenders"]:
        cells = {n: contender["cells"].get(label, {}) for label, n in tokens.items()}
        points = [(n, cell["median_s"] * 1e3) for n, cell in cells.items() if "median_s" in cell]
        if points:
            style, width = STYLES.get(contender["name"].split("-")[0], ("-", 1.4))
            colour = colours[contender["name"]]
            panel.plot(
                *zip(*points, strict=True), style, lw=width, marker="o", ms=4, color=colour, label=contender["title"]
            )
    for limit in geometry.get("limits", []):
        times = [shape["useful_flops"] / limit["flops_per_s"] * 1e3 for shape in single]
        dashes, label = LIMIT_DASHES[limit["precision"]], f"the machine's limit, {limit['precision']}"
        panel.plot(tokens.values(), times, color="0.35", lw=1.4, dashes=dashes, label=label)
    panel.set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms", title=f"geometry {name}")
    panel.set_xticks(list(tokens.values()), [str(n) for n in tokens.values()])
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.grid(visible=True, which="both", lw=0.3, alpha=0.6)


if __name__ == "__main__":
    sys.exit(main())
