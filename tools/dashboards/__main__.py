"""python -m tools.dashboards: write every dashboard as JSON, where Grafana is told to look for them."""

import argparse
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from tools.dashboards import cost, judgement, latency, load, process

FOLDER = Path("deploy/grafana/dashboards")
BOARDS = (latency, cost, load, judgement, process)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.dashboards", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    folder = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in written().items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


def written() -> dict[str, str]:
    """File name -> content, the same each time."""
    encoder = JSONEncoder(sort_keys=True, indent=2)
    files = {board.__name__.rpartition(".")[2]: board.dashboard() for board in BOARDS}
    return {f"{name}.json": encoder.encode(dashboard) + "\n" for name, dashboard in files.items()}


if __name__ == "__main__":
    sys.exit(main())
