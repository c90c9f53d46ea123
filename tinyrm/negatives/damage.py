"""Make a good text worse: repeat, mash, shuffle or cut it, change a number, plant a bug.

Every function takes a random generator and returns None where the text does not allow it.
"""

import re
from collections.abc import Iterable
from typing import Final

from numpy.random import Generator

# What one letter key is beside.
KEYS: Final = ("qwertyuiop", "asdfghjkl", "zxcvbnm", "qweasdzxc", "uiojklnm", "1234567890")
# A number that is no part of a word; and the markers of lists, such as "2." at the start of a line.
NUMBER: Final = re.compile(r"(?<![\w.,])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)")
MARKER: Final = re.compile(r"^[\s*#>-]*\d+[.)](?=\s)|\b(?:step|choice|option|case)\s+\d+", re.IGNORECASE | re.MULTILINE)
# A call alone: often several arguments are right.
CALL_ALONE: Final = re.compile(r"\s*[\w.]+\(.*\)\s*", re.DOTALL)
# Signs of code, each counted once.
CODE_SIGNS: Final = tuple(
    re.compile(sign, re.MULTILINE)
    for sign in (
        r"^\s*(?:def \w+\(.*\)|class \w+[\w(), ]*:|import \w+|from \w+ import)",
        r"^\s*(?:public|private|protected|static|const|let|var|int|void|auto|fn|func)\b[^.\n]*[;{(]",
        r"^\s*(?:for|while|if|else|elif|switch)\b[^.?!\n]*[:{)]\s*$",
        r"^\s*return\b[^.?!\n]*;?$",
        r";\s*$",
        r"^[ \t]+[\w.\[\]]+ [-+*/]?= \S",
        r"\w+\.\w+\(|\w+\[\w+\]",
    )
)
COMMENT: Final = re.compile(r"(?://|#|/\*|\"\"\").*")
# What a slip of a programmer's hand looks like: what is found, and what stands there instead.
BUGS: Final[tuple[tuple[re.Pattern[str], str], ...]] = tuple(
    (re.compile(pattern), instead)
    for pattern, instead in (
        (r" < (?=[\w(])", " <= "),
        (r" > (?=[\w(])", " >= "),
        (r"(?<=\w)<(?=\w+[;) ])", "<="),
        (r" ?<= ?", " < "),
        (r" ?>= ?", " > "),
        (r" ?== ?", " != "),
        (r" ?!= ?", " == "),
        (r"(?<=[\w)\]]) ?\+ ?(?=[\w(])", " - "),
        (r"(?<=[\w)\]]) ?- ?(?=[\w(])", " + "),
        (r" ?\+= ?", " -= "),
        (r" ?-= ?", " += "),
        (r"(?<=\w) ?\* ?(?=\w)", " + "),
        (r"\+\+", "--"),
        (r"\band\b", "or"),
        (r"\bor\b", "and"),
        (r"&&", "||"),
        (r"\|\|", "&&"),
        (r"\bTrue\b", "False"),
        (r"\bFalse\b", "True"),
        (r"\btrue\b", "false"),
        (r"\bfalse\b", "true"),
        (r"\bmin\(", "max("),
        (r"\bmax\(", "min("),
        (r"\bif not ", "if "),
        (r"\[0\]", "[1]"),
        (r"\brange\(1, ", "range("),
        (r"\brange\((?=\w+\))", "range(1, "),
        (r"\breturn -1\b", "return 0"),
    )
)
IDENTIFIER: Final = re.compile(r"(?<![.\w\"'])[a-z_]\w{0,14}\b(?![(\w\"'])")
KEYWORDS: Final = re.compile(
    r"and|as|assert|auto|bool|boolean|break|case|catch|char|class|const|continue|def|default|"
    r"del|delete|do|double|elif|else|enum|except|extends|false|final|finally|float|fn|for|from|"
    r"func|function|global|if|implements|import|in|int|interface|is|lambda|let|long|namespace|"
    r"new|not|null|nullptr|or|package|pass|private|protected|public|raise|return|self|short|"
    r"static|std|string|struct|super|switch|this|throw|throws|true|try|typedef|unsigned|using|"
    r"var|vector|virtual|void|while|with|yield"
)


def pick(rng: Generator, count: int) -> int:
    """Return a random index below `count`."""
    return int(rng.integers(count))


def repetition(text: str, length: int, rng: Generator) -> str | None:
    """Return a word, a few words or a sentence of the text at least three times, about `length` characters."""
    words, sentences = text.split(), re.split(r"(?<=[.!?])\s+|\n+", text.strip())
    if not words:
        return None
    start = pick(rng, len(words))
    units = [words[start], " ".join(words[start : start + 2 + pick(rng, 4)]), sentences[pick(rng, len(sentences))]]
    unit = units[pick(rng, 3)]
    if 3 * len(unit) > 1.5 * length:  # it would be too long to be there three times
        unit = words[start]
    joint = (" ", " ", "\n", ", ")[pick(rng, 4)]
    times = max(3, round(length / (len(unit) + len(joint))))
    return joint.join([unit] * times)


def keyboard_mash(length: int, rng: Generator) -> str:
    """Return `length` characters of nobody's language: runs on a part of the keyboard, or any letters."""
    anywhere = rng.random() < 0.3
    words: list[str] = []
    while sum(map(len, words)) + len(words) < length + 1:
        keys = "".join(KEYS[:3]) if anywhere else KEYS[pick(rng, len(KEYS))]
        words.append("".join(keys[i] for i in rng.integers(len(keys), size=2 + pick(rng, 11))))
    return " ".join(words)[: max(length, 3)].rstrip()


def shuffled_words(text: str, rng: Generator) -> str | None:
    """Return the text with its words in random order; blanks and lines stay where they are."""
    pieces = re.split(r"(\s+)", text)
    places = [place for place, piece in enumerate(pieces) if piece.strip()]
    words = [pieces[place] for place in places]
    if len(words) < 6 or len(set(words)) < 5:
        return None
    for place, word in zip(places, rng.permutation(words), strict=True):
        pieces[place] = str(word)
    return "".join(pieces)


def truncated(text: str, rng: Generator) -> str | None:
    """Return the first quarter to three quarters of the text, up to the middle of a sentence."""
    inner = [
        match.end()
        for match in re.finditer(r"\S+(?= +\S)", text)
        if text[match.end() - 1] not in ".!?:;)]}\"'" and 0.25 * len(text) < match.end() < 0.75 * len(text)
    ]
    return text[: inner[pick(rng, len(inner))]] if len(text.split()) >= 12 and inner else None


def changed_number(text: str, rng: Generator) -> str | None:
    """Return the text with another value in place of one of its numbers, written as that one was."""
    if CALL_ALONE.fullmatch(text):
        return None
    found = outside(NUMBER.finditer(text), MARKER.finditer(text))
    if not found:
        return None
    match = found[pick(rng, len(found))]
    whole, point, rest = match.group().partition(".")
    value = int(whole.replace(",", ""))
    step = 1 + pick(rng, max(3, value // 4))
    other = value - step if value >= step and rng.random() < 0.5 else value + step
    written = f"{other:,}" if "," in whole else str(other)
    return text[: match.start()] + written + point + rest + text[match.end() :]


def outside(found: Iterable[re.Match[str]], others: Iterable[re.Match[str]]) -> list[re.Match[str]]:
    """Return the matches that do not begin inside one of the others."""
    spans = [other.span() for other in others]
    return [match for match in found if not any(start <= match.start() < end for start, end in spans)]


def is_code(text: str) -> bool:
    """Return whether a text is code: a fenced block, or lines with several signs of it."""
    return "```" in text or ("\n" in text and sum(bool(sign.search(text)) for sign in CODE_SIGNS) >= 3)


def planted_bug(text: str, rng: Generator) -> str | None:
    """Return code with one operator, constant or name replaced; comments stay as they are."""
    if not is_code(text):
        return None

    def matches(pattern: re.Pattern[str]) -> list[re.Match[str]]:
        return outside(pattern.finditer(text), COMMENT.finditer(text))

    # Where a change fits, and what stands there then; None is another name.
    changes: list[tuple[list[re.Match[str]], str | None]] = [(matches(pattern), instead) for pattern, instead in BUGS]
    names = [match for match in matches(IDENTIFIER) if not KEYWORDS.fullmatch(match.group())]
    distinct = sorted({name.group() for name in names})
    if len(distinct) >= 3:
        # Where a name stands first, it is often defined: there, another one would only rename it.
        changes.append((names[len(names) // 3 :], None))
    changes = [change for change in changes if change[0]]
    if not changes:
        return None
    places, instead = changes[pick(rng, len(changes))]
    match = places[pick(rng, len(places))]
    if instead is None:
        others = [name for name in distinct if name != match.group()]
        instead = others[pick(rng, len(others))]
    return text[: match.start()] + instead + text[match.end() :]
