"""python -m tools.charts: draw the charts of docs/images from docs/results and the manifest of a bundle."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyrm.command_line import parse
from tools.svg import BLUE, GREEN, GREY, LINE, ORANGE, RED, SOFT, Picture

LEFT, RIGHT = 236, 700
# Contenders of docs/results/bench.json as a reader knows them, ours first.
JUDGE = {
    "ours-ort-fp32": "TinyRM",
    "optimum-ort-fp32": "optimum-onnx",
    "transformers-fp32": "transformers",
    "plain-ort-fp32": "plain ONNX export",
}
CROSS_ENCODER = {
    "ours-ort": "TinyRM",
    "sentence-torch": "sentence-transformers, torch",
    "sentence-onnx": "sentence-transformers, ONNX",
    "sentence-openvino": "sentence-transformers, OpenVINO",
    "fastembed": "fastembed",
    "flashrank": "flashrank",
    "infinity": "infinity, over HTTP",
}
COLOURS = (BLUE, ORANGE, GREEN, GREY, RED, "#7a4fa3", "#2f7f8f")
WAYS = {
    "round-robin": "all pairs",
    "cascade": "cascade, best four in pairs",
    "response": "each response alone",
    "set": "all at once, as a set",
}
# Sets of pairs, as the part `accuracy` of the benchmark names them.
PAIRS = {"validation": "2,216 validation pairs", "half": "half of them", "held out": "pairs held out of training"}
READS = {"set": BLUE, "response": GREEN, "pair": ORANGE}


@dataclass(frozen=True)
class Options:
    """Draw the charts of docs/images."""

    folder: Path = Path("docs/images")
    """Folder for the charts."""
    results: Path = Path("docs/results")
    """Folder of the measured results."""
    bundle: Path = Path("models/starter")
    """Bundle whose accuracy is shown."""


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def accuracy(manifest: Any) -> Picture:
    """Accuracy by domain with its interval, beside the best rule that knows only the lengths."""
    domains = manifest["evaluation"]["domains"]
    p = Picture(740, 84 + 76 * len(domains) + 52, "Accuracy by domain, beside a rule that knows only the lengths")
    p.heading(
        f"Accuracy of {manifest['name']}@{manifest['revision']}",
        "Validation pairs that it did not learn from; the thin line is the 95 % interval",
    )

    def x(share: float) -> float:
        return LEFT + (RIGHT - LEFT) * (share - 0.4) / 0.5

    bottom = 84 + 76 * len(domains)
    for tick in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        p.line([(x(tick), 84), (x(tick), bottom)], LINE, 1)
        p.text(x(tick), bottom + 18, f"{tick:.0%}", size=13, colour=SOFT, anchor="middle")
    for number, (name, row) in enumerate(domains.items()):
        top = 92 + 76 * number
        p.text(LEFT - 14, top + 23, name if name != "all" else "all domains", size=15, weight=600, anchor="end")
        p.text(LEFT - 14, top + 43, f"{row['pairs']:,} pairs", size=13, colour=SOFT, anchor="end")
        value = row["accuracy"]
        p.bar(x(0.4), top, x(value["value"]) - x(0.4), 28, BLUE)
        p.line([(x(value["low"]), top + 14), (x(value["high"]), top + 14)], "#10204d", 2)
        p.text(x(value["high"]) + 8, top + 20, f"{value['value']:.1%}", size=14, weight=600)
        p.bar(x(0.4), top + 32, x(row["length_heuristic"]) - x(0.4), 20, GREY)
        p.text(x(row["length_heuristic"]) + 8, top + 47, f"{row['length_heuristic']:.1%}", size=13, colour=SOFT)
    p.bar(LEFT, bottom + 30, 12, 12, BLUE)
    p.text(LEFT + 18, bottom + 41, "starter", size=13)
    p.bar(LEFT + 90, bottom + 30, 12, 12, GREY)
    p.text(LEFT + 108, bottom + 41, "always the longer, or always the shorter response", size=13)
    return p


@dataclass(frozen=True)
class Curve:
    """What one line of a chart shows: (x, milliseconds), and the words at its end."""

    title: str
    points: Sequence[tuple[float, float]]
    colour: str
    is_ours: bool = False
    is_dashed: bool = False


@dataclass(frozen=True)
class Frame:
    """The rectangle of a chart whose scales are both logarithmic."""

    left: float
    right: float
    top: float
    bottom: float
    curves: list[Curve]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point is drawn."""
        xs = [x for curve in self.curves for x, _ in curve.points]
        low, high = self.bounds
        across = math.log(x / min(xs)) / math.log(max(xs) / min(xs))
        up = math.log(y / low) / math.log(high / low)
        return self.left + (self.right - self.left) * across, self.bottom - (self.bottom - self.top) * up

    @property
    def bounds(self) -> tuple[float, float]:
        ys = [y for curve in self.curves for _, y in curve.points]
        return min(ys) / 1.25, max(ys) * 1.25

    def draw(self, p: Picture, unit: str) -> None:
        """Draw the grid, the curves, and their titles at the right, one below the other where they would meet."""
        low, high = self.bounds
        for exponent in range(-1, 7):
            for step in (1, 2, 5):
                value = step * 10.0**exponent
                if low <= value <= high and (step == 1 or high / low < 300):
                    y = self.place(self.curves[0].points[0][0], value)[1]
                    p.line([(self.left, y), (self.right, y)], LINE, 1)
                    p.text(self.left - 8, y + 5, f"{value:,g}", size=13, colour=SOFT, anchor="end")
        for x in sorted({x for curve in self.curves for x, _ in curve.points}):
            at = self.place(x, low)[0]
            p.text(at, self.bottom + 19, f"{x:,g}", size=13, colour=SOFT, anchor="middle")
        p.text(self.left, self.top - 12, "ms", size=13, colour=SOFT, anchor="end")
        p.text(self.right, self.bottom + 39, unit, size=13, colour=SOFT, anchor="end")
        for curve in self.curves:
            places = [self.place(x, y) for x, y in curve.points]
            p.line(places, curve.colour, 3.2 if curve.is_ours else 1.8, dashed=curve.is_dashed)
            for x, y in [] if curve.is_dashed else places:
                p.dot(x, y, curve.colour, 4.5 if curve.is_ours else 3)
        ends = sorted((self.place(*curve.points[-1])[1], number) for number, curve in enumerate(self.curves))
        below = -math.inf
        for y, number in ends:
            below = max(y + 5, below + 17)
            curve = self.curves[number]
            weight = 600 if curve.is_ours else 400
            p.text(self.right + 12, below, curve.title, size=13, colour=curve.colour, weight=weight)


def decision(parts: Any) -> Picture:
    """Time for one decision against its tokens: a judge of pairs, and a cross-encoder, beside other engines."""
    p = Picture(1000, 850, "Time for one decision against its tokens, in TinyRM and in other engines and libraries")
    engines = parts["engines"]
    name = "base" if "base" in engines["geometries"] else next(iter(engines["geometries"]))
    judge = engines["geometries"][name]
    curves = curves_of(judge, JUDGE)
    limit = next((one for one in judge["limits"] if one["precision"] == "fp32"), None)
    if limit:
        points = [(s["lengths"][0], 1e3 * s["useful_flops"] / limit["flops_per_s"]) for s in lengths(judge)]
        curves.append(Curve("limit of the machine, fp32", points, SOFT, is_dashed=True))
    p.heading(
        f"A judge of pairs (ModernBERT, size {name}): the longer the text, the further ahead",
        f"one sequence, fp32, ids in, {where(engines)}; at the right, the time at the longest text over TinyRM's",
    )
    Frame(80, 680, 96, 380, curves).draw(p, "tokens")
    libraries = parts["cross-encoders"]
    p.text(24, 466, "MiniLM-L6's sizes: level on short texts, ahead on long ones", size=18, weight=600)
    p.text(24, 488, f"a cross-encoder, one sequence, fp32, texts in, {where(libraries)}", size=13, colour=SOFT)
    Frame(80, 680, 526, 792, curves_of(libraries["geometries"]["minilm"], CROSS_ENCODER)).draw(p, "tokens")
    return p


def curves_of(geometry: Any, titles: Mapping[str, str]) -> list[Curve]:
    """Return a curve for each contender of `titles`, the first of which is ours."""
    cells = {contender["name"]: contender["cells"] for contender in geometry["contenders"]}
    ours, colours = next(iter(titles)), iter(COLOURS)
    curves = []
    for name, title in titles.items():
        colour = next(colours)
        found = cells.get(name, {})
        points = [
            (shape["lengths"][0], 1e3 * found[shape["label"]]["median_s"])
            for shape in lengths(geometry)
            if "median_s" in found.get(shape["label"], {})
        ]
        if points:
            label = next(s["label"] for s in lengths(geometry) if s["lengths"][0] == points[-1][0])
            of_ours = cells[ours].get(label, {}).get("median_s")
            times = f", {points[-1][1] / 1e3 / of_ours:.1f} times" if of_ours and name != ours else ""
            curves.append(Curve(title + times, points, colour, is_ours=name == ours))
    return curves


def lengths(geometry: Any) -> list[Any]:
    """Return the shapes of one sequence."""
    return [shape for shape in geometry["shapes"] if len(shape["lengths"]) == 1]


def where(part: Any) -> str:
    return f"{part['machine']['cores']} cores of {cpu(part['machine'])}, {part['created'][:10]}"


def ranking(part: Any) -> Picture:
    """Time to rank n responses, each way to rank them."""
    p = Picture(1000, 480, "Time to rank n responses: all pairs, a cascade, each response alone, all at once")
    p.heading(
        "Ranking n responses: all pairs grow with n², the others with n",
        f"a prompt of {part['prompt_tokens']} tokens, responses of {part['response_tokens']}, models of 8 million "
        f"parameters, {where(part)}",
    )
    curves = []
    for (name, title), colour in zip(WAYS.items(), (GREY, ORANGE, GREEN, BLUE), strict=True):
        cells = next(row["cells"] for row in part["contenders"] if row["name"] == name)
        points = [(int(n), 1e3 * cell["median_s"]) for n, cell in cells.items() if "median_s" in cell]
        if points:
            last = f": {points[-1][1]:,.0f} ms for {points[-1][0]:g}"
            curves.append(Curve(title + last, points, colour, is_ours=name == "set"))
    Frame(80, 640, 96, 416, curves).draw(p, "responses")
    return p


def tradeoff(part: Any) -> Picture:
    """Accuracy against operations for a decision, of every model that was trained."""
    p = Picture(1000, 560, "Accuracy against operations for a decision, of the starter and of every trained variant")
    p.heading(
        "Accuracy against cost: more operations alone buy no accuracy",
        "operations for a decision between two responses; compare marks of one kind, each kind is another set of pairs",
    )
    left, right, top, bottom, high = 80.0, 960.0, 84.0, 456.0, 80.0
    points = part["points"]
    most = 2 * -(-max(point["gflops"] for point in points) // 2)
    low = 5.0 * (min(point["accuracy"] for point in points) // 5)

    def place(gflops: float, accuracy: float) -> tuple[float, float]:
        return left + (right - left) * gflops / most, bottom - (bottom - top) * (accuracy - low) / (high - low)

    for percent in range(int(low), int(high) + 1, 5):
        p.line([place(0, percent), place(most, percent)], LINE, 1)
        p.text(left - 8, place(0, percent)[1] + 5, f"{percent} %", size=13, colour=SOFT, anchor="end")
    for gflops in range(0, int(most) + 1, 2):
        p.text(place(gflops, low)[0], bottom + 20, f"{gflops}", size=13, colour=SOFT, anchor="middle")
    p.text(right, bottom + 42, "GFLOPs for a decision", size=13, colour=SOFT, anchor="end")
    # Those of most pairs on top.
    for point in sorted(points, key=lambda point: -list(PAIRS).index(point["pairs"])):
        colour = READS[point["reads"]]
        if point["pairs"] == "validation":
            p.line([place(point["gflops"], point[end]) for end in ("low", "high")], colour, 1)
        mark(p, point["pairs"], *place(point["gflops"], point["accuracy"]), colour)
    best = max((point for point in points if point["pairs"] == "validation"), key=lambda point: point["accuracy"])
    x, y = place(best["gflops"], best["accuracy"])
    p.text(
        x + 14, y + 5, f"{best['name']}: {best['accuracy']:.1f} %; the line is its 95 % interval", size=14, weight=600
    )
    for number, (reads, colour) in enumerate(READS.items()):
        p.bar(left + 250 * number, bottom + 56, 12, 12, colour)
        p.text(left + 20 + 250 * number, bottom + 67, f"reads {reads}s", size=13)
    for number, (kind, text) in enumerate(PAIRS.items()):
        mark(p, kind, left + 6 + 250 * number, bottom + 86, SOFT)
        p.text(left + 20 + 250 * number, bottom + 91, text, size=13)
    return p


def mark(p: Picture, kind: str, x: float, y: float, colour: str) -> None:
    """Draw a model, by the pairs that it was measured on."""
    if kind == "half":
        p.ring(x, y, colour)
    else:
        p.dot(x, y, colour, 7 if kind == "validation" else 3)


def cpu(machine: Any) -> str:
    return str(machine["cpu"]).replace("(R)", "").replace(" Processor @", " at").replace("GHz", " GHz")


def load(curve: Any) -> Picture:
    """Latency against the offered load, and what became of the largest."""
    p = Picture(740, 484, "Latency against the offered load, and the requests answered and refused under overload")
    machine = curve["machine"]
    where = f"{curve['model']}, {machine['cores']} cores of {cpu(machine)}, {curve['created'][:10]}"
    where += f", TINYRM_MAX_WAIT_S={curve['max_wait_s']}"
    p.heading("Latency against the load", where + (f"; {curve['note']}" if curve["note"] else ""))
    points = [(point["offered"], point) for point in curve["points"]]
    top, bottom, low, high = 84, 304, 96, 700
    peak = 500.0 * -(-max(1000 * point["p99_s"] for _, point in points) // 500)
    for step in range(6):
        y = bottom - (bottom - top) * step / 5
        p.line([(low, y), (high, y)], LINE, 1)
        p.text(low - 8, y + 5, f"{peak * step / 5:,.0f} ms", size=13, colour=SOFT, anchor="end")
    most = max(share for share, _ in points)
    for share, _ in points:
        p.text(low + (high - low) * share / most, bottom + 20, f"{share:.0%}", size=13, colour=SOFT, anchor="middle")
    p.text(high, bottom + 43, "offered load, share of the capacity", size=13, colour=SOFT, anchor="end")
    for number, (key, colour, label) in enumerate((("p99_s", ORANGE, "p99"), ("p50_s", BLUE, "p50 (median)"))):
        places = [
            (low + (high - low) * share / most, bottom - (bottom - top) * 1000 * point[key] / peak)
            for share, point in points
        ]
        p.line(places, colour)
        for (x, y), (_, point) in zip(places, points, strict=True):
            p.dot(x, y, colour)
            p.text(x - 6, y - 10, f"{1000 * point[key]:.0f}", size=13, weight=600, colour=colour, anchor="end")
        p.bar(low + 70 * number, bottom + 32, 12, 12, colour)
        p.text(low + 18 + 70 * number, bottom + 43, label, size=13)
    shed(p, curve)
    return p


def shed(p: Picture, curve: Any) -> None:
    """Draw what became of the requests under the largest load."""
    point = curve["points"][-1]
    p.text(24, 386, f"At {point['offered']:.0f} times the capacity", size=16, weight=600)
    answered, refused = point["answered"] / point["sent"], point["refused"] / point["sent"]
    p.bar(24, 402, 692 * answered, 30, BLUE)
    p.bar(24 + 692 * answered, 402, 692 * refused, 30, GREY)
    p.text(34, 423, f"answered {answered:.0%}", size=13, weight=600, colour="#ffffff")
    p.text(36 + 692 * answered, 423, f"refused at once with 429: {refused:.0%}", size=13, weight=600, colour="#ffffff")
    lost = point["failed"] + point["lost"]
    rates = f"{point['answered_per_s']:.1f} responses per second, of a capacity of {curve['capacity_per_s']:.1f}"
    p.text(24, 460, f"Lost: {lost}. {rates}.", size=14)


def drawn(options: Options) -> dict[str, Picture]:
    """Return the charts by name; one whose part was not measured is left out."""
    parts = read(options.results / "bench.json")["parts"]
    charts = {"accuracy": accuracy(read(options.bundle / "manifest.json"))}
    if "minilm" in parts.get("cross-encoders", {}).get("geometries", {}) and "engines" in parts:
        charts["decision"] = decision(parts)
    if "ranking" in parts:
        charts["ranking"] = ranking(parts["ranking"])
    if "accuracy" in parts:
        charts["tradeoff"] = tradeoff(parts["accuracy"])
    if (options.results / "load-curve.json").is_file():
        charts["load"] = load(read(options.results / "load-curve.json"))
    return charts


def main(arguments: list[str] | None = None) -> int:
    options = parse(Options, arguments, prog="python -m tools.charts")
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, chart in drawn(options).items():
        (options.folder / f"{name}.svg").write_text(chart.svg())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
