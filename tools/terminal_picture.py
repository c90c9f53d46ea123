"""python -m tools.terminal_picture: draw a terminal with real commands and what they print, for the documentation."""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tests.support.processes import STARTER, started
from tinyrm.command_line import parse
from tools.svg import MONO

COMMANDS = (
    'tinyrm compare "I failed my exam." "I am sorry. Try again." "Stop whining, loser."',
    'tinyrm rank "Why is the sky blue?" "No idea." "Air scatters blue light more than red."',
    "tinyrm score pairs.jsonl --out scored.jsonl",
)
PAIRS = '{"prompt": "Say hello.", "chosen": "Hello! How are you?", "rejected": "No."}\n' * 3
COLUMNS, SIZE, LEADING = 88, 13, 19
WIDTH = 740


@dataclass(frozen=True)
class Options:
    """Draw a terminal with real commands and what they print."""

    picture: Path = Path("docs/images/terminal.svg")
    """File for the picture."""


def main(arguments: list[str] | None = None) -> int:
    options = parse(Options, arguments, prog="python -m tools.terminal_picture")
    with started(STARTER) as service, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pairs.jsonl").write_text(PAIRS)
        program = Path(folder) / "tinyrm"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tinyrm "$@"\n')
        program.chmod(0o755)
        shown = [(command, run(command, Path(folder), service.port)) for command in COMMANDS]
    options.picture.write_text(draw(shown))
    return 0


def run(command: str, folder: Path, port: int) -> list[str]:
    """Return the lines that a command prints, without colours, folded as a terminal folds them."""
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path.cwd()),
        "TINYRM_URL": f"http://127.0.0.1:{port}",
        "NO_COLOR": "1",
        "COLUMNS": str(COLUMNS),
    }
    done = subprocess.run(  # noqa: S603 - one of COMMANDS
        ["/bin/sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    text = (done.stdout + done.stderr).replace(f"127.0.0.1:{port}", "localhost:8000").expandtabs()
    lines = [line.rstrip() for line in text.splitlines()]
    return [piece for line in lines for piece in (re.findall(f".{{1,{COLUMNS}}}", line) or [""])]


def draw(shown: list[tuple[str, list[str]]]) -> str:
    parts, y = [], 60
    for command, lines in shown:
        pieces = f'<tspan fill="#7bd88f">$</tspan> <tspan fill="#ffffff" font-weight="600">{escape(command)}</tspan>'
        parts.append(f'<text x="20" y="{y}" xml:space="preserve">{pieces}</text>')
        y += LEADING
        for line in lines:
            parts.append(f'<text x="20" y="{y}" fill="#c9d1dc" xml:space="preserve">{escape(line)}</text>')
            y += LEADING
        y += 8
    height = y
    frame = [
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#161b24" stroke="#3a4250"/>',
        *(
            f'<circle cx="{22 + 20 * n}" cy="20" r="6" fill="{c}"/>'
            for n, c in enumerate(("#e0655c", "#e2b34c", "#62b665"))
        ),
        f'<text x="{WIDTH / 2:g}" y="25" fill="#8f99a8" text-anchor="middle" font-size="12">tinyrm</text>',
    ]
    body = "\n".join(["<title>A terminal: commands of tinyrm and what they print</title>", *frame, *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="{escape(MONO)}" font-size="{SIZE}">\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    raise SystemExit(main())
