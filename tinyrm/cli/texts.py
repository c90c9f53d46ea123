"""Texts of the command line: arguments, and files and standard input, which are UTF-8."""

import codecs
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tinyrm.errors import InvalidInput


def read_texts(words: Sequence[str]) -> list[str]:
    """Return the texts of arguments, from a file or standard input where they name one. Raises InvalidInput."""
    if words.count("-") > 1:
        raise InvalidInput("only one of the texts can be standard input; use @FILE for the others")
    texts = []
    for word in words:
        if word == "-":
            texts.append(read_stdin())
        elif word.startswith("@@"):
            texts.append(argument(word[1:]))
        else:
            texts.append(read_file(Path(word[1:])) if word.startswith("@") else argument(word))
    return texts


def argument(word: str) -> str:
    """Return an argument as text. Python could not decode it in a locale such as C. Raises InvalidInput."""
    try:
        word.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(word).decode()
        except UnicodeError as error:
            raise InvalidInput(f"an argument is not text in UTF-8: {error}") from error
    return word


def read_file(file: Path) -> str:
    """Return the text of a file, without a byte order mark. Raises InvalidInput."""
    try:
        return decode(file.read_bytes(), "utf-8", str(file))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{file} cannot be read: {error}") from error


def read_stdin() -> str:
    """Return the text of standard input: UTF-8, as files are, or the encoding of PYTHONIOENCODING or of a terminal.

    Raises InvalidInput.
    """
    if sys.stdin is None:
        raise InvalidInput("standard input is closed; use @FILE")
    try:
        raw = getattr(sys.stdin, "buffer", None)
        if raw is None:
            return sys.stdin.read()
        is_chosen = "PYTHONIOENCODING" in os.environ or sys.stdin.isatty()
        return decode(raw.read(), sys.stdin.encoding if is_chosen else "utf-8", "standard input")
    except (OSError, ValueError) as error:
        raise InvalidInput(f"standard input cannot be read: {error}") from error


def decode(data: bytes, encoding: str, name: str) -> str:
    """Return the text, without a byte order mark, which would be a part of a prompt. Raises InvalidInput."""
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16")
        return data.removeprefix(codecs.BOM_UTF8).decode(encoding)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{name} cannot be read: not text in {encoding}, save it as UTF-8: {error}") from error
