"""What the measurements were to reach, and whether they did."""

from collections.abc import Iterator, Mapping
from typing import Any

from loadtests.bench.contenders import CONTENDERS, OURS, PRODUCTS
from loadtests.bench.shapes import GEOMETRIES
from loadtests.report import Target
from tinyrm.flops import exact_flops

Cells = Mapping[str, Mapping[str, Any]]

PLAIN = "plain-ort-fp32"
MIN_SHARE_PERCENT, SHARE_TOKENS = 85, (256, 512, 1024, 2048)
MAX_GROWTH, SHORT, LONG = 1.35, 512, 4096
MIN_OVER_PLAIN = 2
MAX_FRONT_MS, MIN_REQUESTS_PER_S, MAX_START_S = 1.0, 2000, 1.0


def goals(parts: Mapping[str, Any], load: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all goals, those without a measurement as missed.

    parts: of docs/results/bench.json. load: docs/results/load.json, and under "start" docs/results/start.json.
    """
    geometries = parts.get("engines", {}).get("geometries", {})
    found = [*of_base(by_name(geometries.get("base", {})))]
    small = by_name(geometries.get("small", {}))
    plain, ours, alone = (seconds(small.get(name, {}), 64) for name in (PLAIN, OURS, PRODUCTS))
    what = "starter's geometry at 64 tokens, plain export over ours"
    what += beside(ratio(plain, alone), "over the products alone", "x")
    found.append(Target(what, ratio(plain, ours), MIN_OVER_PLAIN, "at least", "x"))
    return [target.record() for target in [*found, *of_front(load)]]


def of_base(contenders: Mapping[str, Cells]) -> Iterator[Target]:
    """Yield the goals of ModernBERT-base in fp32, on the faster of our engines."""
    ours = [contenders[name] for name, one in CONTENDERS.items() if is_ours(name, one.precision) and name in contenders]
    for tokens in SHARE_TOKENS:
        shares = [cells[str(tokens)]["mfu"] for cells in ours if "mfu" in cells.get(str(tokens), {})]
        share = 100 * max(shares) if shares else None
        alone = contenders.get(PRODUCTS, {}).get(str(tokens), {}).get("mfu")
        what = f"base at {tokens:,} tokens, share of the matrix rate"
        what += beside(alone and 100 * alone, "the products alone", " %")
        yield Target(what, share, MIN_SHARE_PERCENT, "at least", " %")
    operations = exact_flops(GEOMETRIES["base"], LONG) / exact_flops(GEOMETRIES["base"], SHORT) * SHORT / LONG
    what = f"base, a token at {LONG:,} over one at {SHORT} (its operations alone: {operations:.2f}x)"
    short, long = (seconds(contenders.get(OURS, {}), tokens) for tokens in (SHORT, LONG))
    growth = ratio(long, short)
    yield Target(what, growth and growth * SHORT / LONG, MAX_GROWTH, "at most", "x")


def of_front(load: Mapping[str, Any]) -> Iterator[Target]:
    overhead = load.get("overhead", {}).get("p50_s")
    yield Target("`/v1/compare` beside the engine, p50", overhead and overhead * 1e3, MAX_FRONT_MS, "at most", " ms")
    rates = [row["requests_per_s"] for row in load.get("ceiling", {}).get("rows", []) if row["items"] == 1]
    yield Target(
        "requests a second with an engine that does nothing",
        max(rates, default=None),
        MIN_REQUESTS_PER_S,
        "at least",
    )
    started = [row["median_s"] for row in load.get("start", {}).get("rows", []) if row["fronts"] == 1]
    yield Target("a start from a warm disk", min(started, default=None), MAX_START_S, "at most", " s")


def beside(value: float | None, what: str, unit: str) -> str:
    """Return what the same run measured of a goal's limit, in brackets; nothing if it did not."""
    return "" if value is None else f" ({what}: {value:.3g}{unit})"


def ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


def by_name(geometry: Mapping[str, Any]) -> dict[str, Cells]:
    return {contender["name"]: contender["cells"] for contender in geometry.get("contenders", [])}


def is_ours(name: str, precision: str) -> bool:
    return name.startswith("ours") and precision == "fp32"


def seconds(cells: Cells, tokens: int) -> float | None:
    found: float | None = cells.get(str(tokens), {}).get("median_s")
    return found
