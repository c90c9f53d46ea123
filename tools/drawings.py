"""python -m tools.drawings: draw how TinyRM works, into docs/images: a request, a model's life, the ways to read."""

from dataclasses import dataclass
from pathlib import Path

from tinyrm.command_line import parse
from tools.svg import GREEN, RED, SOFT, Picture


@dataclass(frozen=True)
class Options:
    """Draw how TinyRM works."""

    folder: Path = Path("docs/images")
    """Folder for the drawings."""


def request() -> Picture:
    """The path of a request: to the right through the service, and back to the left from the engine."""
    p = Picture(
        740, 452, "The path of a request through the service process, the engine process, and back to the client"
    )
    p.heading("The path of a request")
    width, height, gap, left = 150, 92, 22, 36
    column = [left + n * (width + gap) for n in range(4)]
    up, down = 92, 258
    p.region((18, 62), (722, 62), (722, 200), (538, 200), (538, 366), (198, 366), (198, 200), (18, 200))
    p.text(36, 84, "service process", size=13, colour=SOFT)
    for x, title, lines in zip(
        column,
        ("HTTP", "API", "Encode", "Queue"),
        (
            ("key, size limits,", "request id"),
            ("validates the body,", "chooses the model"),
            ("texts to token ids,", "in threads"),
            ("admits or refuses;", "fair among clients"),
        ),
        strict=True,
    ):
        p.box(x, up, width, height, "green", title, lines)
    for x in column[:3]:
        p.arrow((x + width, up + height / 2), (x + width + gap - 3, up + height / 2))
    p.region((548, 228), (722, 228), (722, 366), (548, 366))
    p.text(column[3] + width / 2, down - 10, "engine process", size=13, colour=SOFT, anchor="middle")
    p.box(column[3], down, width, height, "purple", "Engine", ("runs the graph;", "replaced if it fails"))
    p.box(column[2], down, width, height, "green", "Read out", ("margin, temperature,", "probability"))
    p.box(column[1], down, width, height, "green", "Reply", ("with the time of", "each stage"))
    p.box(column[0], down, width, height, "grey", "Client")
    p.arrow((column[3] + width / 2, up + height), (column[3] + width / 2, 225))
    p.text(column[3] + width / 2 + 8, 218, "batch", size=13, colour=SOFT)
    for n in (3, 2, 1):
        p.arrow((column[n], down + height / 2), (column[n] - gap + 3, down + height / 2))
    p.arrow((column[0] + width / 2, down), (column[0] + width / 2, up + height + 3))
    p.text(column[0] + width / 2 + 8, up + height + 46, "request", size=13, colour=SOFT)
    p.text(36, 400, "Too much work is waiting:", size=14, colour=RED, weight=600)
    p.text(246, 400, "429 with Retry-After at once, before the work costs anything.", size=14)
    p.text(36, 426, "After the reply:", size=14, colour=GREEN, weight=600)
    p.text(246, 426, "metrics for Prometheus, and one line of the access log.", size=14)
    return p


def life() -> Picture:
    """From preference pairs to a served model, and to the pairs of the next one."""
    p = Picture(
        740, 392, "From preference pairs through training and export to a bundle, its service and its evaluation"
    )
    p.heading("The life of a model")
    p.box(18, 58, 704, 158, "", dashed=True)
    p.text(34, 78, "tinyrm train my.jsonl --out models/mine", size=14, weight=600)
    width, gap, left, up = 150, 24, 34, 94
    column = [left + n * (width + gap) for n in range(4)]
    p.box(column[0], up, width, 104, "grey", "Pairs", ("prompt, chosen,", "rejected; split", "by prompt"))
    p.box(column[1], up, width, 104, "green", "Training", ("full weights, or an", "adapter (DoRA);", "one GPU to many"))
    p.box(
        column[2],
        up,
        width,
        104,
        "green",
        "Export",
        ("compiles the graph,", "compares with torch", "to 1e-4, calibrates"),
    )
    p.box(
        column[3], up, width, 104, "yellow", "Bundle", ("graph, tokenizer,", "manifest, card;", "a hash of each file")
    )
    for n in range(3):
        p.arrow((column[n] + width, up + 52), (column[n + 1] - 3, up + 52))
    down = 262
    p.box(
        column[2] - 60,
        down,
        width + 10,
        104,
        "blue",
        "Evaluation",
        ("held-out pairs,", "RewardBench 1 and 2,", "RM-Bench, JudgeBench"),
    )
    p.box(
        column[3],
        down,
        width,
        104,
        "purple",
        "Service",
        ("reload without", "interruption; metrics", "show each revision"),
    )
    p.arrow((column[3] + width / 2, up + 104), (column[3] + width / 2, down - 3))
    p.arrow((column[3] + 24, up + 104), (column[3] + 24, 240), (column[2] + 20, 240), (column[2] + 20, down - 3))
    p.box(column[0], down, width + 60, 104, "orange", "Use", ("rewards for GRPO,", "best of n, filtered data"))
    p.arrow((column[3] + width / 2 - 20, down + 104), (column[3] + width / 2 - 20, 380), (column[0] + 105, 380),
            (column[0] + 105, down + 107))  # fmt: skip
    p.arrow((column[0] + 76, down), (column[0] + 76, up + 107), dashed=True)
    p.text(column[0] + 86, down - 16, "new pairs for the next model", size=13, colour=SOFT)
    return p


def reads() -> Picture:
    """What one sequence holds, in each of the three ways to read."""
    p = Picture(
        740, 500, "What one sequence holds when a model reads pairs, responses or sets, and what n responses cost"
    )
    p.heading(
        "Three ways to read", "Each row is one sequence that the model reads. Responses A, B and C to one prompt."
    )

    def sequence(y: float, cells: list[tuple[str, str, float]], x: float = 36) -> float:
        for fill, text, width in cells:
            p.box(x, y, width - 4, 34, fill, "", (text,))
            x += width
        return x

    def kind(y: float, title: str, result: str, cost: str) -> None:
        p.text(36, y, title, size=15, weight=600)
        p.text(186, y, result, size=13.5, colour=SOFT)
        p.text(704, y, cost, size=13.5, colour=SOFT, anchor="end")

    a, b, c, mask = ("blue", "A", 96.0), ("orange", "B", 96.0), ("green", "C", 96.0), ("yellow", "[MASK]", 84.0)
    question = [("grey", "instruction", 110.0), ("grey", "prompt", 130.0)]
    kind(96, "reads: pair", "which is better, in both orders", "n (n - 1) sequences")
    sequence(108, [*question, a, b, mask])
    p.text(566, 130, "A before B?", size=13.5)
    sequence(148, [*question, b, a, mask])
    p.text(566, 170, "B before A?", size=13.5)
    p.text(36, 204, "The same for A and C, and for B and C. The mean of both orders decides.", size=13.5, colour=SOFT)
    kind(244, "reads: response", "one score each", "n sequences")
    for n, (cell, name) in enumerate(((a, "A"), (b, "B"), (c, "C"))):
        end = sequence(256 + 40 * n, [*question, cell])
        p.text(end + 8, 278 + 40 * n, f"score of {name}", size=13.5)
    kind(410, "reads: set", "the prompt once, all responses beside each other", "one sequence")
    sequence(422, [*question])
    x = 276.0
    for cell, name in ((a, "A"), (b, "B"), (c, "C")):
        sequence(422, [(cell[0], name, 62.0), ("yellow", "[MASK]", 76.0)], x)
        p.text(x + 66, 476, f"score of {name}", size=13.5, anchor="middle")
        x += 146
    return p


DRAWINGS = {"request": request, "life": life, "reads": reads}


def main(arguments: list[str] | None = None) -> int:
    options = parse(Options, arguments, prog="python -m tools.drawings")
    for name, draw in DRAWINGS.items():
        (options.folder / f"{name}.svg").write_text(draw().svg())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
