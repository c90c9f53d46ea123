"""python -m tools.dashboards: write every dashboard as JSON into the folder that Grafana reads."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from tinyrm.command_line import parse
from tools.dashboards import cost, judgement, latency, load, process

BOARDS = (latency, cost, load, judgement, process)


@dataclass(frozen=True)
class Options:
    """Write every dashboard as JSON."""

    folder: tyro.conf.Positional[Path] = Path("deploy/grafana/dashboards")
    """Folder for the files."""


def main(arguments: list[str] | None = None) -> int:
    folder = parse(Options, arguments, prog="python -m tools.dashboards").folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


def files() -> dict[str, str]:
    """Return file name -> content, the same each time."""
    encoder = JSONEncoder(sort_keys=True, indent=2)
    dashboards = {board.__name__.rpartition(".")[2]: board.dashboard() for board in BOARDS}
    return {f"{name}.json": encoder.encode(dashboard) + "\n" for name, dashboard in dashboards.items()}


if __name__ == "__main__":
    sys.exit(main())
