"""What the benches print and write: tables, the numbers behind them, and their plot."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadtests import report
from loadtests.bench.contenders import PEERS

# Prepared models, logs, and results that go into no document.
ROOT = Path("runs/bench")


def write(results: Mapping[str, Any], name: str, heading: str, section: str, document: Path | None) -> None:
    """Print the section; write it, the numbers and the plot.

    name: of the section, the record and the plot.
    document: None writes the numbers and the plot below ROOT instead.
    """
    print_line(section)
    if document is None:
        record, plot = ROOT / f"{name}.json", ROOT / f"{name}.png"
        report.write_record(results, record)
    else:
        record = report.write(results, name, heading, section, document)
        plot = document.parent / "images" / f"{name}.png"
    draw(record, plot)


def draw(record: Path, out: Path) -> None:
    """Draw the numbers in `record`, in the environment that has matplotlib; print why if that fails."""
    try:
        subprocess.run([PEERS, "-m", "loadtests.bench.plot", record, out], check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no plot: {error}", file=sys.stderr)


def print_line(line: str) -> None:
    print(line, flush=True)
