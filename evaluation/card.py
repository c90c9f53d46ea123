"""The measured part of a model card, kept between two markers so that prose and numbers have one file."""

from pathlib import Path

from tinyrm.errors import InvalidInput

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def update_card(path: Path, results: str) -> None:
    """Put `results` between the markers of a model card. Raises InvalidInput if it has none."""
    refuse_without_markers(path)
    text = path.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    path.write_text(f"{head}{BEGIN}\n\n{results}\n\n{END}{tail}", encoding="utf-8")


def refuse_without_markers(path: Path) -> None:
    """Raise InvalidInput if there is no place in the card for results."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if BEGIN not in text or END not in text:
        raise InvalidInput(f"{path} needs the lines {BEGIN} and {END} around the place of the results")
