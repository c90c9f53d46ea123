"""What the bench prints and keeps: one file of results, written part by part, and the pages and pictures made of it."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from loadtests import machine
from tinyrm.files import write_atomically

# Prepared models, logs, and results that go into no document.
ROOT = Path("runs/bench")
PACKAGES = ("onnxruntime", "openvino", "numpy", "tokenizers", "torch", "transformers")


@dataclass(slots=True)
class Record:
    """A file of results: {"parts": {name: results}}. Parts that are not measured again stay as they are."""

    path: Path
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> "Record":
        return cls(path, json.loads(path.read_text(encoding="utf-8"))["parts"] if path.is_file() else {})

    def put(self, name: str, header: Mapping[str, Any], results: Mapping[str, Any]) -> None:
        """Replace a part and write the file, whole or not at all.

        header: what was measured on, and when.
        """
        self.parts[name] = {**header, **results}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps({"parts": self.parts}, indent=1) + "\n")


def header(threads: int, effort: str) -> dict[str, Any]:
    """Return what every part states: the machine, the versions of what our own engines use, and when."""
    return {
        "machine": machine.describe(machine.read_cpuinfo()),
        "threads": threads,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "effort": effort,
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
    }


def installed(package: str) -> str:
    """Return the version of a package of this environment, or an empty string."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def draw(docs: Path) -> None:
    """Draw docs/images from docs/results; print why if that fails."""
    command = [sys.executable, "-m", "tools.charts", "--results", str(docs / "results"), "--folder"]
    try:
        subprocess.run([*command, str(docs / "images")], check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no pictures: {error}", file=sys.stderr)


def print_line(line: str) -> None:
    print(line, flush=True)
