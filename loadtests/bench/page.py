"""docs/performance.md and docs/performance-tables.md: made of docs/results and the starter's manifest alone."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtests import report
from loadtests.bench import caller_tables, goals, score_tables, tables
from loadtests.bench.contenders import OURS
from loadtests.bench.ranking import WAYS
from loadtests.load import tables as load_tables
from loadtests.report import measured_on, mebibytes, milliseconds, read_record

Parts = Mapping[str, Mapping[str, Any]]

MANIFEST = Path("models/starter/manifest.json")
LOAD, START = Path("docs/results/load.json"), Path("docs/results/start.json")
WIDTH = 140
SIZES = {
    "small": "ModernBERT, 8 million parameters",
    "base": "ModernBERT-base, 149 million",
    "large": "ModernBERT-large, 395 million",
}
SERVERS = ("ours-http", *score_tables.SERVERS[1])
GENERATED = "<!-- `python -m loadtests.bench` writes this page; its words are in loadtests/bench/page.py -->"
INTRODUCTION = """
This page states how fast TinyRM is, how it compares with what else you could use, and how to measure it on your
machine. All tables are in [performance-tables.md](performance-tables.md), what was tried to make it faster is in
[notes/performance.md](notes/performance.md), load and overload in [reliability.md](reliability.md), replicas and
cost in [scaling.md](scaling.md).
"""
READING = """
A comparison is one sequence for a model that reads sets, two shorter ones for a model that reads responses, and two
for a model that reads pairs in both orders ([three ways to read](how-it-works.md#three-ways-to-read)). The time
grows with the tokens, and a little faster above 1,024. Two sequences take twice as long as one: on a CPU a batch
gains nothing. ModernBERT-base belongs on a GPU, on a CPU with AMX in bf16
([how to export and serve it](deployment.md#openvino)), or on one with more cores.
"""
DECISION = """
![Milliseconds against tokens, both scales logarithmic: a ModernBERT that judges pairs, and a cross-encoder of
MiniLM's sizes, in TinyRM and in other engines and libraries](images/decision.svg)
"""
BESIDE = """
Every engine has the same random weights and texts, and they take turns. Our graph computes only the rows that the
head reads, its local layers cost as much for each token at any length, and nothing is padded: the advantage grows
with the length, and with the mix of lengths in a batch. [The figures](#the-figures) have every length.
"""
RANKING = """
![Milliseconds to rank 2 to 32 responses: all pairs, a cascade, each response alone, all at once; both scales
logarithmic](images/ranking.svg)
"""
TRADEOFF = """
![Accuracy of the starter and of all trained variants against billions of operations for a
decision](images/tradeoff.svg)
"""
LOADED = """
![Latency at 20 to 300 % of the capacity, and the requests answered and refused at three times the
capacity](images/load.svg)
"""
UNDER_LOAD = """
The latency rises with the load, because a request waits for the one that the engine runs. Above the capacity the
service refuses what would wait longer than `TINYRM_MAX_WAIT_S` (1 s here, 10 s by default), at once and with
`Retry-After`, and goes on with the rest: the latency of what it accepts stays near that bound. `python -m
loadtests.load.curve` measures it; [reliability.md](reliability.md) has harder cases.
"""
STARTS = """
`python -m loadtests.load.start`: the starter from a warm disk until `/readyz` returns 200, with one process for HTTP
and with two fronts, and the memory of each process. The engine has private, packed copies of the weights, which all
streams share.
"""
COMMANDS = """\
```bash
tinyrm bench models/starter --tokens 64 256 512
python -m evaluation.latency models/starter --pairs pairs.jsonl
make load LOADTEST=--quick
python -m loadtests.load.curve --pairs pairs.jsonl --seconds 30
make bench BENCH=--quick
```"""
MEASURE = """
The first command times the engine alone. The second one times whole comparisons of your pairs. `make load`
overloads a service, and `loadtests.load.curve` measures the latency at shares of its capacity. `make bench`
measures everything else on this page, and writes it, [performance-tables.md](performance-tables.md) and the
pictures: hours as it is, about 30 minutes with `BENCH=--brief`, about 6 with `BENCH=--quick` (two cores; longer the
first time, when it installs the others and makes the models). `--only` takes parts of it: `engines`,
`cross-encoders`, `ranking`, `callers` and `accuracy`; each is kept as it is measured. Its exit status is 1 if
scores of ours differ from the reference. Close other programs first: on a busy machine only ratios within one run
mean anything.
"""


def write(parts: Parts, docs: Path) -> None:
    """Write both pages."""
    manifest, load = json.loads(MANIFEST.read_text()), read_record(LOAD) | {"start": read_record(START)}
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "performance.md").write_text(performance(parts, manifest, load), encoding="utf-8")
    (docs / "performance-tables.md").write_text(all_tables(parts, load["start"]), encoding="utf-8")


def performance(parts: Parts, manifest: Mapping[str, Any], load: Mapping[str, Any]) -> str:
    """Return the page: what to expect, the pictures, then the figures."""
    blocks = ["# Performance", GENERATED, prose(INTRODUCTION), "## What to expect", *expect(parts, manifest)]
    blocks += ["## Beside other engines and libraries", *beside(parts)]
    blocks += ["## Ranking n responses", *ranking(parts.get("ranking"))]
    blocks += ["## Accuracy against cost", *accuracy(parts.get("accuracy"))]
    blocks += ["## Under load", line(LOADED), prose(UNDER_LOAD)]
    if start := load.get("start"):
        blocks.append(prose(start_words(start)))
    blocks += ["## The figures", *figures(parts)]
    blocks += ["## What it was to reach", *reached(parts, load)]
    blocks += ["## Measure it yourself", COMMANDS, prose(MEASURE)]
    return joined(blocks)


def start_words(start: Mapping[str, Any]) -> str:
    """Return what a start takes with one process for HTTP, and its memory."""
    one = start["rows"][0]
    memory = ", ".join(f"{process['role']} {mebibytes(process['proportional_bytes'])}" for process in one["memory"])
    return (
        f"The service is ready {one['median_s']:.1f} s after its start, with the starter on a warm disk, and its "
        f"processes take {memory} ([all figures](performance-tables.md#start-and-memory))."
    )


def expect(parts: Parts, manifest: Mapping[str, Any]) -> Iterator[str]:
    latency = manifest["evaluation"]["latency"]
    one = latency["models"][0]
    decision = one["decision_ms"]
    yield prose(
        f"One comparison of the starter (a pair of {one['tokens']:.0f} tokens, one caller) takes "
        f"{decision['p50']:.0f} ms at the median and {decision['p95']:.0f} ms at p95 on "
        f"{latency['processors']} cores of {cpu(latency['cpu'])} "
        "([its card](../models/starter/README.md#latency))."
    )
    if engines := parts.get("engines"):
        yield prose(
            "Models of other sizes, milliseconds for one sequence of so many tokens, on ONNX Runtime unless stated. "
            f"{measured_on(engines['machine'])}, on {engines['created'][:10]}:"
        )
        yield our_times(engines)
    yield prose(READING)


def our_times(engines: Mapping[str, Any]) -> str:
    """Return our times by model and precision."""
    lengths = sorted({n for geometry in engines["geometries"].values() for n in single(geometry)})
    rows = []
    for name, geometry in engines["geometries"].items():
        for contender, precision in ((OURS, "fp32"), ("ours-ort-int8", "int8"), ("ours-ov-bf16", "bf16, OpenVINO")):
            cells = goals.by_name(geometry).get(contender, {})
            if any("median_s" in cell for cell in cells.values()):
                times = [milliseconds(cells.get(str(n), {}).get("median_s")) for n in lengths]
                rows.append([SIZES[name], precision, *times])
    return report.table(["model", "precision", *(f"{n:,}" for n in lengths)], rows)


def beside(parts: Parts) -> Iterator[str]:
    if "engines" not in parts or "minilm" not in parts.get("cross-encoders", {}).get("geometries", {}):
        yield "Not measured yet."
        return
    yield line(DECISION)
    yield prose(BESIDE)


def ranking(part: Mapping[str, Any] | None) -> Iterator[str]:
    if part is None:
        yield "Not measured yet."
        return
    yield line(RANKING)
    yield prose(
        f"One prompt of {part['prompt_tokens']} tokens and n responses of {part['response_tokens']}, models of "
        "one size, timed at `tinyrm.scorer`. All pairs in both orders are n(n - 1) sequences, single responses n, "
        "a set one, which shares the prompt. A cascade adds the pairs of its best four to single responses. For "
        "groups, take a model that scores responses alone or in sets, and keep pairs for the last few."
    )


def accuracy(part: Mapping[str, Any] | None) -> Iterator[str]:
    if part is None:
        yield "Not collected yet."
        return
    best = max((p for p in part["points"] if p["pairs"] == "validation"), key=lambda p: p["accuracy"])
    yield line(TRADEOFF)
    yield prose(
        f"The {best['name']} is right on {best['accuracy']:.1f} % of the validation pairs for "
        f"{best['gflops']:.1f} GFLOPs each. It learned from 23,034 pairs, the variants of "
        "[experiments.md](experiments.md) from a few thousand each, and that decides more than operations do; the way "
        "to read decides what a decision costs. Compare marks of one kind: each kind is another set of pairs. "
        "Operations of rings and small dots are counted by `tinyrm/flops.py`, for small dots at an assumed length of "
        "200 tokens (a response alone: 130)."
    )


def figures(parts: Parts) -> Iterator[str]:
    """Yield times as multiples of ours, rankings, and servers under callers."""
    yield "Times as multiples of ours, which is in milliseconds; fp32 unless stated."
    geometries = parts.get("engines", {}).get("geometries", {})
    # The other sizes are on the page of all tables.
    for name in ["base"] if "base" in geometries else list(geometries)[:1]:
        yield f"A judge of pairs, ids in: {SIZES[name]} ({on(parts['engines'])})."
        yield multiples(geometries[name], OURS)
    if geometry := parts.get("cross-encoders", {}).get("geometries", {}).get("minilm"):
        yield f"A cross-encoder of MiniLM-L6's sizes, texts in ({on(parts['cross-encoders'])}):"
        yield multiples(geometry, score_tables.LIBRARIES[0], without=SERVERS)
        yield "The same over HTTP, as multiples of TinyRM's service:"
        yield multiples(score_tables.only(geometry, SERVERS), "ours-http")
    if "ranking" in parts:
        yield f"Rankings, milliseconds, in brackets the sequences that are read ({on(parts['ranking'])}):"
        yield ranking_table(parts["ranking"])
    if "callers" in parts:
        yield from callers(parts["callers"])


def multiples(geometry: Mapping[str, Any], ours: str, without: Sequence[str] = ()) -> str:
    """Return the time of each contender over ours, and why one has none."""
    labels = [shape["label"] for shape in geometry["shapes"]]
    of_ours = goals.by_name(geometry).get(ours, {})
    rows, reasons = [], []
    for contender in geometry["contenders"]:
        cells = contender["cells"]
        if contender["name"] in without:
            continue
        if any("median_s" in cell for cell in cells.values()):
            is_ours = contender["name"] == ours
            texts = [multiple(cells.get(label), None if is_ours else of_ours.get(label, {})) for label in labels]
            rows.append([contender["title"], *texts])
        elif "bf16" not in contender["name"]:
            notes = [cell["note"] for cell in cells.values() if "note" in cell]
            reasons.append(f"* {contender['title']}: {contender['reason'] or next(iter(notes), 'not measured')}")
    return "\n\n".join(filter(None, [report.table(["", *labels], rows), "\n".join(reasons)]))


def multiple(cell: Mapping[str, Any] | None, ours: Mapping[str, Any] | None) -> str:
    """Return a time over ours such as `2.10`, or milliseconds if `ours` is None."""
    if not cell or "median_s" not in cell or ours == {}:
        return "-"
    if ours is None:
        return f"{milliseconds(cell['median_s'])} ms"
    return f"{cell['median_s'] / ours['median_s']:.2f}" if "median_s" in ours else "-"


def ranking_table(part: Mapping[str, Any]) -> str:
    sizes = list(next(iter(part["sequences"].values())))
    cells = goals.by_name(part)
    rows = [
        [title, *(f"{tables.cell_text(cells[name].get(n), None)} ({part['sequences'][name][n]})" for n in sizes)]
        for name, (title, *_) in WAYS.items()
        if name in cells
    ]
    return report.table(["n responses", *sizes], rows)


def callers(part: Mapping[str, Any]) -> Iterator[str]:
    models = list(dict.fromkeys(row["model"] for row in part["rows"]))
    yield f"Servers of that cross-encoder under 1, 8 and 64 callers, texts of mixed lengths ({on(part)}):"
    yield caller_tables.table([row for row in part["rows"] if row["model"] == models[0]])


def reached(parts: Parts, load: Mapping[str, Any]) -> Iterator[str]:
    where = (
        "The matrix rate is that of the machine's fastest product in any runtime; the work is that of the label logits."
        " [The notebook](notes/performance.md#operators-of-the-graph) has what takes the time of what is missed."
    )
    if "overhead" in load:
        where += f" The two goals before the last are from `make load` ({on(load['overhead'])})."
    yield prose(where)
    rows = [
        [
            goal["what"],
            "not measured" if goal["value"] is None else f"{goal['value']:,.4g}{goal['unit']}",
            f"{goal['sense']} {goal['limit']:,g}{goal['unit']}",
            "met" if goal["met"] else "**missed**",
        ]
        for goal in goals.goals(parts, load)
    ]
    yield report.table(["goal", "measured", "limit", ""], rows)


def all_tables(parts: Parts, start: Mapping[str, Any]) -> str:
    """Return the page of all tables. start: docs/results/start.json."""
    blocks = [
        "# Performance: all tables",
        GENERATED,
        "What [performance.md](performance.md) sums up. [results/bench.json](results/bench.json) has every sample.",
    ]
    if part := parts.get("engines"):
        blocks += ["## The engines, side by side", tables.section(part)]
    if part := parts.get("cross-encoders"):
        blocks += ["## Cross-encoders, beside other libraries and servers", score_tables.section(part)]
    if part := parts.get("ranking"):
        blocks += ["## Ranking n responses, in all ways", *ranking_parts(part)]
    if part := parts.get("callers"):
        blocks += [caller_tables.HEADING, caller_tables.section(part)]
    if part := parts.get("accuracy"):
        blocks += ["## Accuracy and operations", accuracy_table(part)]
    if start:
        blocks += ["## Start and memory", f"{measured_on(start['machine'])}, on {start['created'][:10]}."]
        blocks += [prose(STARTS), load_tables.starts(start["rows"])]
    return joined(blocks)


def ranking_parts(part: Mapping[str, Any]) -> Iterator[str]:
    samples = part.get("samples", [])
    yield tables.measured(part)
    yield ranking_table(part)
    if samples:
        rows = [[one["title"], tables.cell_text(one["cells"].get("1"), None)] for one in samples]
        yield report.table(["one sample", "ms"], rows)
    yield "\n".join(map(report.sentence, part.get("targets", [])))
    notes = []
    for row in [*part["contenders"], *samples]:
        notes += [f"* {row['title']}: {row['reason']}"] if row["reason"] else []
        notes += [f"* {row['title']} at {n}: {cell['note']}" for n, cell in row["cells"].items() if "note" in cell]
    yield "\n".join(notes)


def accuracy_table(part: Mapping[str, Any]) -> str:
    rows = [
        [
            *(point[name] for name in ("name", "base", "reads", "pairs")),
            f"{point['accuracy']:.1f} ({point['low']:.1f} to {point['high']:.1f})",
            f"{point['gflops']:.2f}{', counted' if point['counted'] else ''}",
        ]
        for point in part["points"]
    ]
    return report.table(["model", "base", "reads", "pairs", "accuracy, %", "GFLOPs a decision"], rows)


def single(geometry: Mapping[str, Any]) -> list[int]:
    return [shape["lengths"][0] for shape in geometry["shapes"] if len(shape["lengths"]) == 1]


def on(part: Mapping[str, Any]) -> str:
    """Return on what a part was measured, and when."""
    return f"{part['machine']['cores']} cores of {cpu(part['machine']['cpu'])}, {part['created'][:10]}"


def cpu(name: str) -> str:
    return name.replace("(R)", "").replace(" Processor @", " at").replace("GHz", " GHz").replace(" Processor", "")


def prose(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def line(text: str) -> str:
    """Return a picture on one line."""
    return " ".join(text.split())


def joined(blocks: Sequence[str]) -> str:
    return "\n\n".join(block for block in blocks if block) + "\n"
