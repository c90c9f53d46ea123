"""Write what follows from the options of the command: its completions, and the tables of docs/cli.md.

    python -m tools.command_line

A test compares what is there with what this would write.
"""

import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import CascadeSubcommandArgs, OmitArgPrefixes, OmitSubcommandPrefixes, configure

from evaluation.options import Options as Evaluate
from export.config import ExportOptions
from service.key_command import KeyCommand
from service.options import ServeOptions
from tinyrm.cli import VERBS
from tinyrm.cli.bench import Bench
from tinyrm.cli.calls import Compare, Models, Rank
from tinyrm.cli.completion import FOLDER, SHELLS, Completion
from tinyrm.cli.score import Score
from tinyrm.command_line import CONFIG
from training.loading import recipe_names
from training.options import Compare as CompareRecipes
from training.options import Curves, Data, Plan, Sweep, Train

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "cli.md"
DATACLASSES: dict[str, Any] = {
    "serve": ServeOptions,
    "train": Train,
    "train plan": Plan,
    "train curves": Curves,
    "train compare": CompareRecipes,
    "train sweep": Sweep,
    "train data": Data,
    "export": ExportOptions,
    "evaluate": Evaluate,
    "compare": Compare,
    "rank": Rank,
    "score": Score,
    "models": Models,
    "bench": Bench,
    "keys": configure(OmitArgPrefixes, OmitSubcommandPrefixes, CascadeSubcommandArgs)(KeyCommand),
    "completion": Completion,
}
TAKE_RECIPES = ("train", "train plan", "train compare", "train sweep")
# Values that are files or folders, by the name that the help gives them.
FILES = re.compile(r"FILE|FOLDER|PATH|OUT|PAIRS|RECIPE|RUN|BUNDLE|MODEL|PROMPT|RESPONSE|SET")


@dataclass(frozen=True, slots=True)
class Argument:
    """An option, or a positional argument, whose name is empty.

    value: how the help names what it takes; empty for one that takes nothing.
    words: what it may be, or may begin with.
    """

    name: str
    value: str
    words: tuple[str, ...]
    takes_files: bool
    help: str
    default: str

    @classmethod
    def of(cls, action: Any) -> "Argument":
        takes = action.nargs != 0
        value = action.metavar if isinstance(action.metavar, str) and takes else ""
        listed = value.strip("[]{}").replace(",", "|").split("|") if action.choices else []
        words = tuple(listed) if set(listed) == {str(one) for one in action.choices or ()} - {"None"} else ()
        words = words or tuple(sorted({str(one) for one in action.choices or ()} - {"None"}))
        text = re.sub(r"\x1b\[[0-9;]*m", "", action.help or "")
        text, default = re.fullmatch(
            r"(.*?)\s*(?:\((default: .*?|required|repeatable)\))?", " ".join(text.split())
        ).groups()  # type: ignore[union-attr]
        name = action.option_strings[-1] if action.option_strings else ""
        return cls(name, value, words, bool(FILES.search(value)) and not words, text, default or "")

    @property
    def short_help(self) -> str:
        return textwrap.shorten(re.split(r"[.;]\s", self.help)[0].rstrip(".").replace("`", ""), 90, placeholder="...")


@dataclass(frozen=True, slots=True)
class Command:
    """A command, such as `compare` or `train plan`, whose subcommands are commands of their own."""

    name: str
    summary: str
    arguments: tuple[Argument, ...]
    examples: str
    subcommands: tuple[str, ...] = ()

    @property
    def options(self) -> list[Argument]:
        return [argument for argument in self.arguments if argument.name]

    def words(self, recipes: str) -> str:
        """Return what a word that is not an option may be. recipes: the variable that holds their names."""
        positional = [word for argument in self.arguments if not argument.name for word in argument.words]
        return " ".join([*self.subcommands, *positional, *([recipes] if self.name in TAKE_RECIPES else ())])

    @property
    def takes_files(self) -> bool:
        return any(argument.takes_files for argument in self.arguments if not argument.name)


def commands() -> list[Command]:
    """Return all commands, as their parsers have them."""
    return [command for name, options in DATACLASSES.items() for command in read(name, options)]


def read(name: str, options: Any) -> Iterator[Command]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # tyro has no other way to its options
        parser = tyro.extras.get_parser(options, prog=f"tinyrm {name}", config=CONFIG)
    text = getattr(options, "__origin__", options).__doc__ or ""
    summary, _, examples = "\n".join(line.strip() for line in text.splitlines()).partition("\nExamples:\n")
    summary = VERBS[name][0] if name in VERBS else summary.split("\n\n")[0].split(".")[0].split(":")[0]
    nested: list[Any] = [one for one in parser._actions if type(one).__name__ == "_SubParsersAction"]
    below = {word: one for action in nested for word, one in action.choices.items()}
    others = tuple(full.partition(" ")[2] for full in DATACLASSES if full.startswith(f"{name} "))
    own = arguments(parser)
    yield Command(name, summary, own, examples.strip(), (*others, *below))
    for word, one in below.items():
        inner = arguments(one)
        names = {argument.name for argument in inner}
        inherited = tuple(argument for argument in own if argument.name not in names)
        about = next(choice.help or "" for choice in nested[0]._choices_actions if choice.dest.strip() == word)
        yield Command(f"{name} {word}", about.rstrip("."), (*inner, *inherited), "")


def arguments(parser: Any) -> tuple[Argument, ...]:
    kinds = ("_HelpAction", "_SubParsersAction")
    return tuple(Argument.of(action) for action in parser._actions if type(action).__name__ not in kinds)


def in_bash(all_commands: Sequence[Command]) -> str:
    def pattern(command: Command, argument: Argument) -> str:
        return f'"{command.name} {argument.name}"'

    cases: dict[str, list[str]] = {}
    for command in all_commands:
        for option in command.options:
            if option.words:
                cases.setdefault(f'_tinyrm_words "{" ".join(option.words)}"', []).append(pattern(command, option))
            elif option.value and not option.takes_files:
                cases.setdefault("_tinyrm_words", []).append(pattern(command, option))
            elif option.takes_files:
                cases.setdefault(":", []).append(pattern(command, option))
    values = "\n".join(f"        {' | '.join(names)}) {does}; return ;;" for does, names in cases.items())
    pairs = " | ".join(f'"{command.name}"' for command in all_commands if " " in command.name)
    verbs = " ".join(command.name for command in all_commands if " " not in command.name)
    rest = "\n".join(
        f'        "{command.name}") options="{" ".join(option.name for option in command.options)}" '
        f'words="{command.words("$recipes")}" ;;'
        for command in all_commands
    )
    return f"""\
# Completion of tinyrm for bash. In ~/.bashrc: source <(tinyrm completion bash)

# Offer these words, and no files.
_tinyrm_words() {{
    compopt +o default 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "${{COMP_WORDS[COMP_CWORD]}}")
}}

_tinyrm() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}"
    local name="${{COMP_WORDS[1]}}" options="" words=""
    local recipes="{" ".join(recipe_names())}"
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then _tinyrm_words "{verbs} --help --version"; return; fi
    if ((COMP_CWORD > 2)); then
        case "$name ${{COMP_WORDS[2]}}" in
        {pairs}) name="$name ${{COMP_WORDS[2]}}" ;;
        esac
    fi
    case "$name $prev" in
{values}
    esac
    case "$name" in
{rest}
    esac
    if [[ $cur == -* ]]; then
        _tinyrm_words "$options --help"
    else
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")  # and files, if none fits
    fi
}}

complete -o default -F _tinyrm tinyrm
"""


def in_zsh(all_commands: Sequence[Command]) -> str:
    def quoted(text: str) -> str:
        return text.replace("'", "'\\''").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")

    def spec(option: Argument) -> str:
        takes = f":{quoted(option.value)}:" + (
            f"({' '.join(option.words)})" if option.words else "_files" if option.takes_files else " "
        )
        return f"'{option.name}[{quoted(option.short_help)}]{takes if option.value else ''}'"

    def rest(command: Command) -> list[str]:
        words = command.words("$recipes")
        parts = [f"'words:word:({words})'"] if words else []
        parts += ["'files:file:_files'"] if command.takes_files else []
        return [f'"*: :{{_alternative {" ".join(parts)}}}"'] if parts else []

    bodies = "\n".join(
        f"                '{command.name}')\n                    _arguments "
        + " \\\n                        ".join([*map(spec, command.options), *rest(command)] or ["'*: : '"])
        + " ;;"
        for command in all_commands
    )
    verbs = "\n".join(
        f"        '{command.name}:{quoted(command.summary)}'" for command in all_commands if " " not in command.name
    )
    pairs = "|".join(f"'{command.name}'" for command in all_commands if " " in command.name)
    return f"""\
#compdef tinyrm
# Completion of tinyrm for zsh. In ~/.zshrc, below compinit: source <(tinyrm completion zsh)

_tinyrm() {{
    local curcontext="$curcontext" state line name
    local recipes="{" ".join(recipe_names())}"
    local -a verbs
    verbs=(
{verbs}
    )
    _arguments -C '1: :->verb' '*:: :->rest'
    case $state in
        verb) _describe command verbs ;;
        rest)
            name=$words[1]
            case "$words[1] $words[2]" in
                {pairs})
                    if ((CURRENT > 2)); then
                        name="$words[1] $words[2]"
                        shift words
                        ((CURRENT--))
                    fi ;;
            esac
            case $name in
{bodies}
            esac ;;
    esac
}}

if [[ $funcstack[1] == _tinyrm ]]; then _tinyrm "$@"; else compdef _tinyrm tinyrm; fi
"""


def in_fish(all_commands: Sequence[Command]) -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = []
    for command in all_commands:
        if " " not in command.name:
            about = quoted(command.summary)
            lines.append(f"complete -c tinyrm -n 'test (count (commandline -opc)) -eq 1' -a {command.name} -d {about}")
    for command in all_commands:
        condition = f'test "$(__tinyrm_command)" = {quoted(command.name)}'
        here = f"complete -c tinyrm -n {quoted(condition)}"
        if command.takes_files:
            lines.append(f"{here} -F")
        if words := command.words("$__tinyrm_recipes"):
            lines.append(f"{here} -a {quoted(words)}")
        for option in command.options:
            takes = (
                f" -x -a {quoted(' '.join(option.words))}"
                if option.words
                else " -r -F"
                if option.takes_files
                else " -x"
            )
            name, about = option.name.removeprefix("--"), quoted(option.short_help)
            lines.append(f"{here} -l {name}{takes if option.value else ''} -d {about}")
    pairs = " ".join(quoted(command.name) for command in all_commands if " " in command.name)
    return "\n".join(
        [
            "# Completion of tinyrm for fish: tinyrm completion fish > ~/.config/fish/completions/tinyrm.fish",
            "",
            "function __tinyrm_command",
            "    set -l words (commandline -opc)",
            f'    if contains -- "$words[2] $words[3]" {pairs}',
            '        echo "$words[2] $words[3]"',
            "    else",
            '        echo "$words[2]"',
            "    end",
            "end",
            "",
            f"set -g __tinyrm_recipes {' '.join(recipe_names())}",
            "complete -c tinyrm -f",
            *lines,
            "",
        ]
    )


def table(command: Command) -> str:
    """Return the options of a command as a Markdown table."""

    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("<", "&lt;")

    rows = []
    for argument in command.arguments:
        shown = f"{argument.name} {argument.value}".strip()
        note = f" ({argument.default})" if argument.default and argument.default != "default:" else ""
        rows.append(f"| `{cell(shown)}` | {cell(argument.help + note)} |")
    return "\n".join(["| argument or option | meaning |", "|---|---|", *rows]) if rows else ""


def page(text: str, all_commands: Sequence[Command]) -> str:
    """Return docs/cli.md with the tables of today. Raises KeyError for a table of no command."""
    known = {command.name: command for command in all_commands}

    def replaced(found: "re.Match[str]") -> str:
        return f"{found[1]}{table(known[found[2]])}\n{found[3]}"

    return re.sub(
        r"(<!-- options of ([a-z ]+): begin -->\n).*?(<!-- options of \2: end -->)", replaced, text, flags=re.DOTALL
    )


def files() -> dict[Path, str]:
    """Return what each file must hold."""
    found = commands()
    scripts = dict(zip(SHELLS, (in_bash(found), in_zsh(found), in_fish(found)), strict=True))
    made = {FOLDER / f"tinyrm.{shell}": script for shell, script in scripts.items()}
    return made | {PAGE: page(PAGE.read_text(encoding="utf-8"), found)}


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content, encoding="utf-8")
