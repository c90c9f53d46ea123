"""The outcomes of `python -m loadtests.chaos`: one line of figures each, and the same as a table in Markdown."""

from collections.abc import Mapping
from typing import Any

from loadtests.texts import mebibytes, milliseconds, table

HEADING = "## Chaos"
COUNTS = ("sent", "answered", "refused", "failed", "lost")
HEADS = ("case", *COUNTS, "p50, p99, ms", "memory, MiB", "observed", "kept")


def line(title: str, record: Mapping[str, Any]) -> str:
    """Such as `SIGTERM: sent 50, answered 48, ... lost 0; p50 12, p99 80 ms; 200 MiB -> 205 MiB; yes`."""
    if "reason" in record:
        return f"{title}: skipped: {record['reason']}"
    counts = ", ".join(f"{name} {record[name]}" for name in COUNTS)
    memory = f"{mebibytes(record['rss_before_bytes'])} -> {mebibytes(record['rss_after_bytes'])}"
    times = f"p50 {milliseconds(record['p50_s'])}, p99 {milliseconds(record['p99_s'])} ms"
    return "; ".join([f"{title}: {counts}", times, memory, *observed(record), verdict(record)])


def section(results: Mapping[str, Any]) -> str:
    """The table, what was broken, and what was not run."""
    machine = results["machine"]
    lead = (
        f"Measured on {machine['cpu']} (family {machine['family']}, model {machine['model']}), {machine['cores']} "
        f"cores, shared by the service and its clients. Capacity {results['capacity_per_s']:.1f} comparisons a second. "
        f"Payloads: {results['payloads']}."
    )
    ran = [record for record in results["cases"] if "reason" not in record]
    skipped = [f"* not run: {record['title']}: {record['reason']}" for record in results["cases"] if "reason" in record]
    broken = [f"* broken: {record['title']}: {promise}" for record in ran for promise in record["broken"]]
    parts = [lead, table(HEADS, map(row, ran)), "\n".join(broken + skipped)]
    return "\n\n".join(part for part in parts if part)


def row(record: Mapping[str, Any]) -> tuple[str, ...]:
    before, after = (mebibytes(record[f"rss_{when}_bytes"]).removesuffix(" MiB") for when in ("before", "after"))
    times = f"{milliseconds(record['p50_s'])}, {milliseconds(record['p99_s'])}"
    counts = (f"{record[name]:,}" for name in COUNTS)
    return record["title"], *counts, times, f"{before} -> {after}", "; ".join(observed(record)), verdict(record)


def observed(record: Mapping[str, Any]) -> list[str]:
    kinds = [f"{count} x {kind}" for kind, count in record["kinds"].items()]
    return kinds + [f"{name}: {value}" for name, value in record["notes"].items()]


def verdict(record: Mapping[str, Any]) -> str:
    if not record["ours"]:
        return "-"
    return "**no**" if record["broken"] else "yes"
