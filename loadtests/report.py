"""Figures, targets and Markdown tables, and the sections of documents that the load tests write."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tabulate import tabulate

RELIABILITY = Path("docs/reliability.md")


@dataclass(frozen=True, slots=True)
class Target:
    """A figure and the bound that it must meet.

    value: None if nothing was measured, which misses the target.
    """

    what: str
    value: float | None
    limit: float
    sense: Literal["at least", "at most"]
    unit: str = ""

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.limit if self.sense == "at least" else self.value <= self.limit

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"met": self.met}


def sentence(target: Mapping[str, Any]) -> str:
    """Return such as `Target: goodput 0.91 (at least 0.8: met).`"""
    value = "not measured" if target["value"] is None else f"{target['value']:.3g}{target['unit']}"
    verdict = "met" if target["met"] else "**missed**"
    return f"Target: {target['what']} {value} ({target['sense']} {target['limit']:g}{target['unit']}: {verdict})."


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table, its cells as they are."""
    return tabulate([list(row) for row in rows], headers=list(heads), tablefmt="github", disable_numparse=True)


def milliseconds(seconds: float | None) -> str:
    """Return three significant digits, or a dash if nothing was measured."""
    if seconds is None:
        return "-"
    ms = seconds * 1e3
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def mebibytes(size: float | None) -> str:
    return "-" if size is None else f"{size / 2**20:.0f} MiB"


def measured_on(machine: Mapping[str, Any]) -> str:
    """Return the beginning of a section's first sentence."""
    return (
        f"Measured on {machine['cpu']} (family {machine['family']}, model {machine['model']}), {machine['cores']} cores"
    )


def with_section(document: str, name: str, heading: str, text: str) -> str:
    """Return the document with `text` between the markers of `name`; without markers, at the end under `heading`."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    block = f"{begin}\n{text}\n{end}"
    if begin in document and end in document:
        before, _, rest = document.partition(begin)
        return before + block + rest.partition(end)[2]
    return f"{document.rstrip()}\n\n{heading}\n\n{block}\n"


def record_of(name: str, document: Path) -> Path:
    """Return the file with the numbers behind a section of the document."""
    return document.parent / "results" / f"{name}.json"


def read_record(record: Path) -> dict[str, Any]:
    """Return the numbers in a file; nothing without it."""
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    return found


def write_record(results: Mapping[str, Any], record: Path) -> None:
    """Write the numbers alone."""
    record.parent.mkdir(exist_ok=True)
    record.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def write(results: Mapping[str, Any], name: str, heading: str, section: str, document: Path) -> Path:
    """Write the section into `document` and the numbers behind it to results/NAME.json beside it. Return the latter."""
    record = record_of(name, document)
    write_record(results, record)
    text = document.read_text(encoding="utf-8")
    document.write_text(with_section(text, name, heading, section), encoding="utf-8")
    return record
