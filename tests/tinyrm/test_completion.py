"""Test the completions in the shells themselves, and that they and docs/cli.md follow the options of the command."""

import fcntl
import os
import pty
import shutil
import struct
import subprocess
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from tinyrm.cli import main
from tinyrm.cli.completion import FOLDER, SHELLS
from tools import command_line

# What is typed -> what is offered among other words, and what is not. The last word is being completed.
OFFERED = [
    ("tinyrm ", {"serve", "train", "completion"}, {"plan", "--swap"}),
    ("tinyrm sc", {"score"}, {"serve"}),
    ("tinyrm compare --", {"--swap", "--json", "--url"}, {"--bundle"}),
    ("tinyrm compare --swap ", {"on", "off", "auto"}, {"None", "pairs.jsonl"}),
    ("tinyrm rank --strategy s", {"swiss"}, {"cascade"}),
    ("tinyrm score pa", {"pairs.jsonl"}, {"--json"}),
    ("tinyrm score pairs.jsonl --bundle ", {"models/"}, {"swiss"}),
    ("tinyrm train pap", {"paper/large-chat"}, {"tinyrm/base-chat"}),
    ("tinyrm train plan --", {"--hardware", "--json"}, {"--base"}),
    ("tinyrm evaluate reward", {"reward-bench", "reward-bench-2"}, {"pairs"}),
    ("tinyrm keys ", {"new", "list", "revoke"}, {"plan"}),
    ("tinyrm keys new --", {"--scopes", "--file"}, {"--bundle"}),
    ("tinyrm completion ", {"bash", "zsh", "fish"}, {"pairs.jsonl"}),
]
BASH = """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$(({count} - 1)); _tinyrm
if ((${{#COMPREPLY[@]}})); then printf '%s\\n' "${{COMPREPLY[@]}}"; else compgen -f -- "${{COMP_WORDS[COMP_CWORD]}}"; fi
"""
ZLE_READS = b"\x1b[?2004h"  # what zsh sends when its line editor begins to read


@contextmanager
def zsh(folder: Path) -> Iterator[Callable[[str], set[str]]]:
    """Run an interactive zsh, which completes only in a terminal; yield a function from typed text to what it shows."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execvpe("zsh", ["zsh", "-f", "-i"], os.environ | {"TERM": "dumb", "HOME": str(folder)})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 500, 200, 0, 0))
    unread = b""

    def read_until(marker: bytes) -> str:
        nonlocal unread
        while marker not in unread:
            unread += os.read(terminal, 65536)
        shown, _, unread = unread.partition(marker)
        return shown.decode()

    def complete(typed: str) -> set[str]:
        os.write(terminal, f"{typed}\t".encode() + b"\x15print do''ne\n")
        shown = read_until(b"do''ne")
        read_until(b"done")
        read_until(ZLE_READS)
        return set(shown.split())

    try:
        read_until(ZLE_READS)
        source = f"autoload -U compinit; compinit -D -u; source {FOLDER / 'tinyrm.zsh'}"
        os.write(terminal, f"LISTMAX=9999; {source}; bindkey '^I' list-choices\n".encode())
        read_until(ZLE_READS)
        yield complete
    finally:
        os.close(terminal)  # which ends the shell
        os.waitpid(process, 0)


def offered(shell: str, typed: str, folder: Path) -> set[str]:
    """Return the words that bash or fish offers."""
    script, words = FOLDER / f"tinyrm.{shell}", typed.split(" ")
    bash = BASH.format(script=script, words=" ".join(f"'{word}'" for word in words), count=len(words))
    command = ["bash", "--norc", "-c", bash]
    if shell == "fish":
        command = ["fish", "--no-config", "-c", f'source {script}; complete -C "{typed}"']
    environment = os.environ | {"TERM": "dumb", "HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {line.split("\t")[0] for line in done.stdout.splitlines()}


@pytest.mark.parametrize(
    "shell", ["bash", pytest.param("zsh", marks=pytest.mark.slow), pytest.param("fish", marks=pytest.mark.slow)]
)
def test_shells_offer_commands_options_choices_and_files(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "pairs.jsonl").write_text("")
    (tmp_path / "models").mkdir()
    with zsh(tmp_path) if shell == "zsh" else nullcontext(lambda typed: offered(shell, typed, tmp_path)) as complete:
        found_for = {typed: complete(typed) for typed, _, _ in OFFERED}
    for typed, wanted, unwanted in OFFERED:
        found = found_for[typed]
        bare = {word.removesuffix("/") for word in found} | found
        assert {word.removesuffix("/") for word in wanted} <= bare, f"{shell}: {typed!r} offers {sorted(found)[:20]}"
        assert not unwanted & found, f"{shell}: {typed!r} offers {sorted(unwanted & found)}"


def test_the_command_prints_the_script_of_each_shell(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        assert capsys.readouterr().out == (FOLDER / f"tinyrm.{shell}").read_text()


def test_completions_and_documentation_follow_the_options() -> None:
    for path, content in command_line.files().items():
        assert path.read_text() == content, f"{path} is of other options; run python -m tools.command_line"
    page = command_line.PAGE.read_text()
    missing = [
        command.name for command in command_line.commands() if f"<!-- options of {command.name}: begin" not in page
    ]
    assert missing == ["keys"], "each has its table; those of keys are in its own commands"


def test_help_names_no_value_of_the_language_it_is_written_in() -> None:
    for command in command_line.commands():
        for argument in command.arguments:
            assert "None" not in argument.value + argument.default, (command.name, argument)
            assert "False" not in argument.default, (command.name, argument)
        assert command.examples or " " in command.name, f"{command.name} has no example"
