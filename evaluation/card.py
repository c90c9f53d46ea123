"""The measured parts of a model card, each kept between two markers so that prose and numbers have one file."""

from pathlib import Path
from typing import Final

from tinyrm.errors import InvalidInput

RESULTS: Final = "results"


def markers(section: str = RESULTS) -> tuple[str, str]:
    """Return the lines around a section of a card."""
    return f"<!-- {section}: begin -->", f"<!-- {section}: end -->"


def update_card(path: Path, results: str, section: str = RESULTS) -> None:
    """Put `results` between the markers of a section; a card that lacks the section gets it at its end.

    Raises InvalidInput as `refuse_half_a_section` does.
    """
    refuse_half_a_section(path, section)
    begin, end = markers(section)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if begin not in text:
        text = f"{text.rstrip()}\n\n## {section.capitalize()}\n\n{begin}\n{end}\n".lstrip()
    head, rest = text.split(begin, 1)
    tail = rest.split(end, 1)[1]
    path.write_text(f"{head}{begin}\n\n{results}\n\n{end}{tail}", encoding="utf-8")


def refuse_half_a_section(path: Path, section: str = RESULTS) -> None:
    """Raise InvalidInput if a card has one of the two markers of a section, or the second one first."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    begin, end = markers(section)
    places = (text.find(begin), text.find(end))
    if places != (-1, -1) and not 0 <= places[0] < places[1]:
        raise InvalidInput(f"{path} needs both lines, {begin} and {end}, around the place of the results, or neither")
