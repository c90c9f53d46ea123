"""The measurements of `python -m loadtests.load` in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from loadtests.report import measured_on, mebibytes, milliseconds, sentence, table

HEADING = "## Load"


def section(results: Mapping[str, Any]) -> str:
    """Return all measurements, each with what it was measured on, and why others are missing."""
    parts = []
    for name, title, write in (
        ("overload", "More than it can take", overload),
        ("mlperf", "MLPerf LoadGen", mlperf),
        ("ceiling", "The front alone", ceiling),
        ("overhead", "One request on an idle service", overhead),
        ("scrape", "Scrapes", scrapes),
    ):
        if name in results:
            measured = results[name]
            targets = [sentence(target) for target in measured["targets"]]
            where = (
                f"{measured_on(measured['machine'])}, shared by the service and the load generator, "
                f"on {measured['created'][:10]}. Payloads: {measured['payloads']}."
            )
            parts += [f"### {title}", where, measured.get("reason") or write(measured), *targets]
    return "\n\n".join(parts)


def missed(results: Mapping[str, Any]) -> Sequence[str]:
    parts = [part for part in results.values() if isinstance(part, Mapping)]
    return [sentence(target) for part in parts for target in part.get("targets", []) if not target["met"]]


def overload(measured: Mapping[str, Any]) -> str:
    memory = (mebibytes(measured["rss_before_bytes"]), mebibytes(measured["rss_after_bytes"]))
    rows = [
        ("capacity, closed loop", f"{measured['peak_per_s']:.1f} /s"),
        ("offered, Poisson arrivals", f"{measured['offered_per_s']:.1f} /s for {measured['seconds']:g} s"),
        *((name, f"{measured[name]:,}") for name in ("sent", "answered", "refused", "failed", "lost")),
        ("goodput", f"{measured['goodput_per_s']:.1f} /s"),
        ("p50, p99 of the answered", f"{milliseconds(measured['p50_s'])}, {milliseconds(measured['p99_s'])} ms"),
        ("bound on the wait", f"{measured['wait_bound_s']:g} s"),
        ("memory before, after", ", ".join(memory)),
    ]
    return table(("figure", "value"), rows)


def mlperf(measured: Mapping[str, Any]) -> str:
    def row(name: str, run: Mapping[str, Any], least: str) -> tuple[str, ...]:
        verdict = "VALID" if run["valid"] else "INVALID"
        return name, f"{run['rate']:.1f}", verdict, milliseconds(run["p99_s"]), f"{run['queries']:,}", least

    least = f"{measured['server_min_duration_s']:g} s, {measured['server_min_query_count']} queries"
    rows = [
        row("Offline", measured["offline"], f"{measured['offline_min_duration_s']:g} s"),
        row("Server", measured["server"], least)
        if measured["server"]
        else ("Server", "no valid rate found", "-", "-", "-", "-"),
    ]
    note = (
        f"Server: single comparisons, 99 % within {measured['p99_bound_s'] * 1e3:g} ms; its rate is the highest valid "
        f"one of a search with {len(measured['trials'])} runs. Offline: calls of /v1/compare/batch. A refused sample "
        "makes a run invalid. These runs are shorter than the official rules demand: 600 s, and for Offline at least "
        "24,576 samples."
    )
    return f"{note}\n\n{table(('scenario', 'samples/s', 'result', 'p99, ms', 'queries', 'at least'), rows)}"


def ceiling(measured: Mapping[str, Any]) -> str:
    rows = [
        (
            row["workers"],
            row["items"],
            f"{row['requests_per_s']:,.0f}",
            f"{row['comparisons_per_s']:,.0f}",
            f"{row['cpu_s_per_request'] * 1e6:,.0f}" if "cpu_s_per_request" in row else "-",
            f"{row['generator_cpu_s_per_request'] * 1e6:,.0f}" if "generator_cpu_s_per_request" in row else "-",
            milliseconds(row["p50_s"]),
            milliseconds(row["p99_s"]),
            row["lost"],
        )
        for row in measured["rows"]
    ]
    cpu = ("service's processor time, us a request", "generator's")
    heads = ("processes", "items a call", "requests/s", "comparisons/s", *cpu, "p50, ms", "p99, ms", "lost")
    return f"An engine that does nothing, closed loop.\n\n{table(heads, rows)}"


def overhead(measured: Mapping[str, Any]) -> str:
    return (
        f"One caller, {measured['requests']} requests of /v1/compare; latency at the client less the `run` in the "
        f"reply's Server-Timing: p50 {milliseconds(measured['p50_s'])}, p99 {milliseconds(measured['p99_s'])} ms "
        f"(aim {milliseconds(measured['aim_s'])} ms)."
    )


def scrapes(measured: Mapping[str, Any]) -> str:
    text = (
        f"/metrics, while {measured['clients']} callers send single comparisons in a closed loop. All series exist "
        "from the start: load adds none."
    )
    rows = [
        (
            row["workers"],
            f"{row['requests_per_s']:.1f}",
            milliseconds(row["idle_p50_s"]),
            milliseconds(row["p50_s"]),
            milliseconds(row["p99_s"]),
            f"{row['series_after']:,}",
            row["families"],
            f"{row['bytes'] / 1024:.0f}",
        )
        for row in measured["rows"]
    ]
    heads = ("processes", "requests/s", "idle p50, ms", "p50, ms", "p99, ms", "series", "metrics", "KiB")
    return f"{text}\n\n{table(heads, rows)}"


def starts(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables of `python -m loadtests.load.start`: seconds until the service is ready, and memory."""
    ready = table(
        ("fronts", "ready, median", "fastest to slowest", "CPU time", "phases"),
        (
            (
                row["fronts"],
                f"{row['median_s']:.2f} s",
                f"{row['fastest_s']:.2f} to {row['slowest_s']:.2f} s",
                f"{row['cpu_s']:.2f} s",
                ", ".join(f"{name.removesuffix('_s')} {value:.2f}" for name, value in row["phases"].items()) or "-",
            )
            for row in rows
        ),
    )
    memory = table(
        ("fronts", "process", "resident", "without double counting"),
        (
            (row["fronts"], one["role"], mebibytes(one["resident_bytes"]), mebibytes(one["proportional_bytes"]))
            for row in rows
            for one in row["memory"]
        ),
    )
    return f"{ready}\n\n{memory}"
