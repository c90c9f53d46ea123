"""python -m tools.dashboards: write the alerts, and every dashboard as JSON, from the objectives."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from tinyrm.command_line import parse
from tools.dashboards import cost, judgement, latency, load, overview, process, rules
from tools.dashboards.bounds import DOCS_URL, Bounds

BOARDS = (overview, latency, cost, load, judgement, process)


@dataclass(frozen=True)
class Options:
    """Write prometheus/rules.yml and grafana/dashboards/ for some objectives."""

    folder: tyro.conf.Positional[Path] = Path("deploy")
    """Folder that holds prometheus/ and grafana/."""
    docs_url: str = DOCS_URL
    """Where the documentation is served: the runbooks' links begin with it."""
    bounds: tyro.conf.OmitArgPrefixes[Bounds] = field(default_factory=Bounds)


def main(arguments: list[str] | None = None) -> int:
    options = parse(Options, arguments, prog="python -m tools.dashboards")
    for name, text in files(options.bounds, options.docs_url).items():
        path = options.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


def files(bounds: Bounds | None = None, docs_url: str = DOCS_URL) -> dict[str, str]:
    """Return file name -> content, the same each time."""
    bounds = bounds or Bounds()
    encoder = JSONEncoder(sort_keys=True, indent=2)
    made = {"prometheus/rules.yml": rules.text(bounds)}
    for board in BOARDS:
        name = board.__name__.rpartition(".")[2]
        made[f"grafana/dashboards/{name}.json"] = encoder.encode(board.dashboard(bounds)) + "\n"
    return {name: text.replace(DOCS_URL, docs_url.rstrip("/")) for name, text in made.items()}


if __name__ == "__main__":
    sys.exit(main())
