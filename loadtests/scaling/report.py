"""The measurements and simulations of `python -m loadtests.scaling` as tables in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from loadtests.scaling.plan import BOUNDS_S, CELL
from loadtests.scaling.scenarios import CALM_UTILISATION, MAX_WAIT_S, OFFERED, ROUTED_UTILISATION, ROUTINGS, WINDOW_S
from loadtests.texts import milliseconds, table

HEADING = "## Measured and simulated"
SHORT = "**A short run: it shows that the command works, not how fast anything is.**"


def section(results: Mapping[str, Any]) -> str:
    machine, measured = results["machine"], results["measured"]
    lead = (
        f"Measured on {machine['cpu']} (family {machine['family']}, model {machine['model']}), {machine['cores']} "
        f"cores, shared by the service and the load generator. Payloads: {results['payloads']}. A pair is one "
        f"comparison in both orders, {results['tokens_per_pair']:.0f} tokens on average."
    )
    parts = [lead, *([SHORT] if results["quick"] else [])]
    for title, text in (
        ("What a replica takes", replica(measured, results["prices"])),
        ("Measured against foretold", foretold(measured)),
        ("Replicas for a rate", plans(results["plans"])),
        ("What breaks first", "\n\n".join(growth(one) for one in results["growth"])),
        ("A front process near its ceiling", front(results)),
        ("Routers that know less", "\n\n".join(routers(one) for one in results["routing"])),
        ("A bound on ongoing requests", bounds(results["bounds"])),
        ("Replicas that come late", late(results["late"], measured["start_s"])),
    ):
        parts += [f"### {title}", text]
    return "\n\n".join(parts)


def replica(measured: Mapping[str, Any], prices: Mapping[str, float]) -> str:
    engine, fit, capacity = measured["engine"], measured["fit"], measured["capacity_per_s"]
    rows = [
        ("capacity, closed loop", f"{capacity:.1f} pairs/s"),
        ("a batch, whatever is in it", f"{milliseconds(engine['fixed_s'])} ms"),
        ("a token", f"{engine['s_per_token'] * 1e6:.2f} us"),
        ("a pair's tokens squared", f"{engine['s_per_token2'] * 1e9:.2f} ns"),
        ("between two batches (part of the first figure)", f"{milliseconds(fit['gap_s'])} ms"),
        ("the front, before the queue", f"{milliseconds(fit['front_s'])} ms"),
        ("engine when the cores are busy, to alone", f"{fit['slowdown']:.2f}"),
        ("runs to the fit, p10 to p90", f"{fit['spread_p10']:.2f} to {fit['spread_p90']:.2f}"),
        ("core-hours for a million pairs", f"{prices['core_hours_per_million']:.1f}"),
        (f"at {prices['per_core_hour']:g} USD a core-hour", f"{prices['per_million']:.2f} USD a million pairs"),
        ("start until ready", f"{measured['start_s']:.1f} s"),
    ]
    return table(("figure", "value"), rows)


def foretold(measured: Mapping[str, Any]) -> str:
    text = (
        "Open loop, Poisson arrivals; the simulation gets the same arrivals and lengths. In brackets measured to "
        f"foretold. Lost: {measured['lost']}, refused: {measured['refused']}."
    )
    rows = [
        (
            f"{row['utilisation']:.0%}", f"{row['rate_per_s']:.1f}", f"{row['requests']:,}",
            *against(row["p50_s"], row["foretold_p50_s"]), *against(row["p99_s"], row["foretold_p99_s"]),
        )
        for row in measured["rows"]
    ]  # fmt: skip
    heads = ("of capacity", "pairs/s", "requests", "p50, ms", "foretold", "p99, ms", "foretold")
    return f"{text}\n\n{table(heads, rows)}"


def against(measured_s: float, foretold_s: float) -> tuple[str, str]:
    return milliseconds(measured_s), f"{milliseconds(foretold_s)} ({measured_s / foretold_s:.2f})"


def plans(found: Sequence[Mapping[str, Any]]) -> str:
    parts = [
        f"Simulated: the fewest replicas within the bound on p99 and at most four fifths of the capacity, in brackets "
        f"USD for a million pairs; in equal cells of at most {CELL} replicas. Network and front are not in the bound, "
        "front processes not in the price; a dash: the longest texts alone take longer."
    ]
    heads = ("pairs/s", *(f"p99 {bound_s * 1e3:g} ms" for bound_s in BOUNDS_S))
    for plan in found:
        title = (
            f"{plan['name']}: {plan['capacity_per_s']:,.0f} pairs/s, {plan['price_per_hour']:g} USD an hour, p99 of "
            f"a pair alone {milliseconds(plan['alone_p99_s'])} ms."
        )
        rows = [(f"{row['rate_per_s']:,.0f}", *map(priced, row["cells"])) for row in plan["rows"]]
        parts += [title, table(heads, rows)]
    return "\n\n".join(parts)


def priced(cell: Mapping[str, Any]) -> str:
    return "-" if cell["replicas"] is None else f"{cell['replicas']:,} ({cell['price_per_million']:.2f})"


def growth(found: Mapping[str, Any]) -> str:
    """A column for each size; every row is counted from what one takes."""
    columns = found["rows"]
    figures = (
        ("pairs/s", "rate_per_s", "{:,.0f}", 1),
        ("front processes", "fronts", "{:,}", 1),
        ("of that, cores that tokenize", "tokenizer_cores", "{:,}", 1),
        ("router to replica connections", "connections", "{:,}", 1),
        ("metric series", "series", "{:,}", 1),
        ("Prometheus' head, GiB", "prometheus_bytes", "{:,.2f}", 2**-30),
        ("one page of all metrics, MiB", "page_bytes", "{:,.1f}", 2**-20),
        ("merging that page, s", "merge_s", "{:,.2f}", 1),
        ("network between hosts, Gbit/s", "bytes_per_s", "{:,.2f}", 8e-9),
    )
    rows = [(title, *(form.format(column[key] * factor) for column in columns)) for title, key, form, factor in figures]
    heads = ("needed", *(f"{column['replicas']:,} replicas" for column in columns))
    firsts = sorted(found["firsts"].items(), key=lambda first: first[1])
    limits = table(("one of it is full with", "replicas"), [(name, replicas_text(size)) for name, size in firsts])
    return f"{found['name']}, at 70 % of the capacity:\n\n{table(heads, rows)}\n\n{limits}"


def replicas_text(size: float) -> str:
    return f"{size:.2f}" if size < 10 else f"{size:,.0f}"


def front(results: Mapping[str, Any]) -> str:
    parts = results["parts"]
    text = (
        f"Its ceiling: {parts['pairs_per_front']:,.0f} pairs/s ({results['front_origin']}). Tokenizing alone, with the "
        f"bundle's tokenizer: {parts['pairs_per_tokenizer_core']:,.0f} pairs/s of one core. Poisson arrivals for "
        f"{results['front_s']:g} s, simulated; beyond the ceiling the wait grows for as long as that lasts."
    )
    rows = [(f"{row['share']:.0%}", milliseconds(row["p50_s"]), milliseconds(row["p99_s"])) for row in results["front"]]
    return f"{text}\n\n{table(('of the ceiling', 'p50, ms', 'p99, ms'), rows)}"


def routers(found: Mapping[str, Any]) -> str:
    rows = [
        (str(row["routers"]), *(milliseconds(row["p99_s"][way]) for way in ROUTINGS)) for row in found["rows"]
    ]  # fmt: skip
    heads = ("routers", *(f"{way}, p99, ms" for way in ROUTINGS))
    replicas = found["rows"][0]["replicas"]
    text = f"{found['name']}: {replicas} replicas at {ROUTED_UTILISATION:.0%} of their capacity, simulated."
    return f"{text}\n\n{table(heads, rows)}"


def bounds(found: Sequence[Mapping[str, Any]]) -> str:
    text = (
        f"Share of the capacity that is left when {OFFERED:g} times it is offered: 4 replicas, one router that looks "
        "for room as Ray Serve's does, simulated."
    )
    shares = zip(*(one["rows"] for one in found), strict=True)
    rows = [(f"{row[0]['bound']}", *(f"{one['share']:.0%}" for one in row)) for row in shares]
    return f"{text}\n\n{table(('ongoing, at most', *(one['name'] for one in found)), rows)}"


def late(found: Sequence[Mapping[str, Any]], start_s: float) -> str:
    text = (
        f"4 replicas of this CPU at {CALM_UTILISATION:.0%} of their capacity; the load doubles, and after a delay the "
        f"replicas do. Who would wait more than {MAX_WAIT_S:g} s is refused. The first delay is the measured start "
        f"({start_s:.1f} s) alone; an autoscaler's own delays, image and node come on top. Worst: of {WINDOW_S:g} s."
    )
    rows = [
        (
            f"{row['delay_s']:.0f}", milliseconds(row["before_p99_s"]), milliseconds(row["worst_p99_s"]),
            f"{row['lasted_s']:.0f}", f"{row['refused']:,}",
        )
        for row in found
    ]  # fmt: skip
    heads = ("delay, s", "p99 before, ms", "worst p99, ms", "above twice that for, s", "refused")
    return f"{text}\n\n{table(heads, rows)}"
