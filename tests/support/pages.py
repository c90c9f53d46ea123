"""The code blocks of README.md and of the pages in docs/."""

import re
import shlex
from dataclasses import dataclass
from functools import cache

from tests.support.kept import REPOSITORY

# A comment in the line above a block: `not run: WHY`, or what a JSON block is: `POST /path`, `reply`.
NOTE = re.compile(r"<!-- (.+?) -->$")
FENCE = re.compile(r"( *)(`{3,}|~{3,})(.*)$")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        return not self.note.startswith("not run: ")


@cache
def pages() -> dict[str, str]:
    """Return the text of every page, by its path in the repository."""
    files = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
    return {file.relative_to(REPOSITORY).as_posix(): file.read_text() for file in files}


def blocks_of(page: str, text: str) -> list[Block]:
    """Return the fenced blocks of a page. Raises ValueError for one without an end."""
    blocks = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        if opening:
            indent, fence, language = opening[1], opening[2], opening[3].strip()
            try:
                end = lines.index(indent + fence, number + 1)
            except ValueError:
                raise ValueError(f"{page}:{number + 1}: a block without an end") from None
            note = NOTE.search(lines[number - 1]) if number else None
            content = "\n".join(line.removeprefix(indent) for line in lines[number + 1 : end]) + "\n"
            blocks.append(Block(page, number + 1, language, content, note[1] if note else ""))
            number = end
        number += 1
    return blocks


@cache
def all_blocks() -> tuple[Block, ...]:
    return tuple(block for page, text in pages().items() for block in blocks_of(page, text))


def blocks(*languages: str) -> list[Block]:
    return [block for block in all_blocks() if block.language in languages]


@dataclass(frozen=True)
class Command:
    """One command of a shell block, with the lines that it is continued on."""

    block: Block
    text: str

    def __str__(self) -> str:
        return f"{self.block} {' '.join(self.text.split()[:3])}"

    @property
    def programs(self) -> list[list[str]]:
        """The words of each program of a pipe or a list, without settings, redirections and .venv/NAME/bin/."""
        words: list[list[str]] = [[]]
        lexer = shlex.shlex(self.text, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        skip = False
        for word in lexer:
            if set(word) <= set("|&;"):
                words.append([])
            elif set(word) <= set("<>") or skip:
                skip = not skip and bool(set(word) <= set("<>"))
            elif words[-1] or not re.match(r"\w+=", word):
                words[-1].append(re.sub(r"^\.venv/\w+/bin/", "", word))
        return [each for each in words if each]


def commands_of(block: Block) -> list[Command]:
    """Return the commands of a block, without comments. A line goes on after a backslash or inside quotes.

    Those of a `console` block are in its lines that begin with `$ `, the others are output.
    """
    commands, pending = [], ""
    for shown in block.text.splitlines():
        if block.language == "console" and not pending and not shown.startswith("$ "):
            continue
        line = shown.removeprefix("$ ")
        if not pending and (not line.strip() or line.lstrip().startswith("#")):
            continue
        pending += line + "\n"
        if pending.count("'") % 2 or pending.count('"') % 2 or line.endswith("\\"):
            continue
        commands.append(Command(block, re.sub(r"\s{2,}# .*", "", pending.replace("\\\n", " ")).strip()))
        pending = ""
    return commands + ([Command(block, pending.strip())] if pending else [])


def commands(*programs: str, also_not_run: bool = False) -> list[Command]:
    """Return the commands of all pages that call one of these programs."""
    read = [block for block in blocks("bash", "console") if block.is_run or also_not_run]
    every = [command for block in read for command in commands_of(block)]
    return [command for command in every if any(words[0] in programs for words in command.programs)]
