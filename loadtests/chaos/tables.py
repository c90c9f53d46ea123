"""The outcomes of `python -m loadtests.chaos`: one line each, and a table in Markdown."""

from collections.abc import Mapping
from typing import Any

from loadtests.report import measured_on, mebibytes, milliseconds, table

HEADING = "## Chaos"
COUNTS = ("sent", "answered", "refused", "failed", "lost")
HEADS = ("case", *COUNTS, "p50, p99, ms", "memory, MiB", "observed", "kept")


def line(record: Mapping[str, Any]) -> str:
    """Return such as `SIGTERM: sent 50, answered 48, ... lost 0; p50 12, p99 80 ms; 200 MiB -> 205 MiB; yes`."""
    if "reason" in record:
        return f"{record['title']}: skipped: {record['reason']}"
    counts = ", ".join(f"{name} {record[name]}" for name in COUNTS)
    memory = f"{mebibytes(record['rss_before_bytes'])} -> {mebibytes(record['rss_after_bytes'])}"
    times = f"p50 {milliseconds(record['p50_s'])}, p99 {milliseconds(record['p99_s'])} ms"
    return "; ".join([f"{record['title']}: {counts}", times, memory, *observed(record), verdict(record)])


def section(results: Mapping[str, Any]) -> str:
    """Return the table, the broken promises, and the cases that did not run."""
    ran = [record for record in results["cases"] if "reason" not in record]
    rows = []
    for record in ran:
        before, after = (mebibytes(record[f"rss_{when}_bytes"]).removesuffix(" MiB") for when in ("before", "after"))
        times = f"{milliseconds(record['p50_s'])}, {milliseconds(record['p99_s'])}"
        counts = (f"{record[name]:,}" for name in COUNTS)
        rows.append(
            (record["title"], *counts, times, f"{before} -> {after}", "; ".join(observed(record)), verdict(record))
        )
    notes = [f"* broken: {record['title']}: {promise}" for record in ran for promise in record["broken"]]
    notes += [f"* not run: {record['title']}: {record['reason']}" for record in results["cases"] if "reason" in record]
    lead = (
        f"{measured_on(results['machine'])}, shared by the service and its clients. Capacity "
        f"{results['capacity_per_s']:.1f} comparisons a second. Payloads: {results['payloads']}."
    )
    return "\n\n".join(part for part in (lead, table(HEADS, rows), "\n".join(notes)) if part)


def observed(record: Mapping[str, Any]) -> list[str]:
    kinds = [f"{count} x {kind}" for kind, count in record["kinds"].items()]
    return kinds + [f"{name}: {value}" for name, value in record["notes"].items()]


def verdict(record: Mapping[str, Any]) -> str:
    if not record["ours"]:
        return "-"
    return "**no**" if record["broken"] else "yes"
