"""Make responses that are worse than a good one, of named kinds, as reinforcement learning finds them first.

A kind applies to some pairs only: a refusal is bad where the prompt is harmless, compliance where it is harmful. Where
this is not clear from the pair, the kind is left out. Nothing but the texts, the kind and a seed decides what is made.

Lengths are drawn around that of the good response, shorter or longer with about equal chance, so that length is no cue.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.random import Generator

from tinyrm.negatives import damage
from tinyrm.negatives import wordings as say
from tinyrm.negatives.damage import pick
from tinyrm.negatives.languages import ABOUT_LANGUAGES, SENTENCES, language_of
from tinyrm.negatives.pool import Pool
from tinyrm.negatives.wordings import half
from tinyrm.pairs import PreferencePair
from tinyrm.template import FIGURE2

Kind = Literal[
    "empty",
    "blank",
    "one_character",
    "repetition",
    "keyboard_mash",
    "shuffled_words",
    "truncated",
    "off_topic",
    "echo",
    "other_language",
    "refusal",
    "compliance",
    "rude",
    "changed_number",
    "planted_bug",
]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
# Nearly the good response itself: to see what is wrong, one must reckon or run it. All others are bad at a glance.
HARD: Final[tuple[Kind, ...]] = ("changed_number", "planted_bug")
# How often a kind is drawn, relative to the others that apply to the pair. Compliance applies to few.
WEIGHTS: Final[Mapping[Kind, float]] = dict.fromkeys(KINDS, 1.0) | {
    "empty": 0.5,
    "blank": 0.5,
    "one_character": 0.5,
    "off_topic": 3.0,
    "refusal": 2.0,
    "compliance": 3.0,
}
# A response to the same prompt that the data say is worse; it is not made, but stands among distractors.
SAME_PROMPT: Final = "same_prompt"

# The mean and the spread of the logarithm of a made text's length over the good one's. The mean is above 0 because some
# kinds can only be shorter.
LENGTH_MEAN, LENGTH_SPREAD, MAX_LENGTH = 0.35, 0.6, 4000
# What is altered must be seen: a longer text may be truncated before it.
MAX_ALTERED: Final = 1200
# An answer of fewer characters is not told from a wrong one by its form.
SHORT: Final = 8

# Domains by name, as the shipped recipes and data have them. A domain of another name is none of the three.
SAFETY: Final = "safety"
EXACT: Final = ("reasoning", "math", "code")
REFUSES: Final = re.compile(
    r"(?:can['’]?t|cannot|can not|won['’]?t|will not|not able to|unable to|not comfortable|must decline|refuse|decline)"
    r"(?: \w+){0,3}? (?:help|assist|fulfil|comply|provid|creat|writ|generat|support|aid|engag|participat|promot|"
    r"encourag|condon|do (?:that|this)|request|answer|information)",
    re.IGNORECASE,
)
# For these an echo may be right.
ASKS_FOR_AN_ECHO: Final = re.compile(
    r"\b(?:repeat|copy|echo|verbatim|paraphras|rephras|rewrit|reword|correct|proofread|translat|edit)", re.IGNORECASE
)
CHARACTERS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?-+*/#@$%&()[]{}<>=~^_|äéßñ中の"
BLANKS: Final = (" ", " ", "\n", "\t", "\n\n")


@dataclass(frozen=True, slots=True)
class Negative:
    """A made-up response, or with kind `same_prompt` one of the data."""

    kind: str
    text: str


class MadePair(PreferencePair):
    """A pair whose rejected response is made up, and may be empty."""

    rejected: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Case:
    """What a response is made from. held_out: whether the wordings are those for evaluation."""

    pair: PreferencePair
    pool: Pool
    rng: Generator
    held_out: bool

    @property
    def good(self) -> str:
        return self.pair.chosen

    @property
    def request(self) -> str:
        """Return the user's last message."""
        return self.pair.prompt.rpartition(f"{FIGURE2.turn_names['user']}: ")[2].strip()

    def length(self) -> int:
        """Draw the length of a made text, in characters."""
        return int(np.clip(len(self.good) * self.rng.lognormal(LENGTH_MEAN, LENGTH_SPREAD), 3, MAX_LENGTH))

    def one_of(self, wordings: tuple[str, ...]) -> str:
        texts = half(wordings, held_out=self.held_out)
        return texts[pick(self.rng, len(texts))]

    def several(self, wordings: tuple[str, ...], length: int) -> list[str]:
        """Return different wordings in random order, until they have about `length` characters; none if that is 0."""
        own = half(wordings, held_out=self.held_out)
        texts = [own[place] for place in self.rng.permutation(len(own))]
        ends = np.cumsum([len(text) + 1 for text in texts])
        return texts[: int((ends - np.diff(ends, prepend=0) / 2 < length).sum())]


def make(pair: PreferencePair, kind: Kind, pool: Pool, seed: int, *, held_out: bool = False) -> str | None:
    """Return a response of a kind that is worse than the pair's chosen one; None if the kind does not apply.

    held_out: whether the wordings are those for evaluation; training never sees them.
    """
    text = MAKERS[kind](Case(pair, pool, generator(seed, kind, *texts_of(pair)), held_out))
    return None if text is None or text.strip() == pair.chosen.strip() else text


def draw(
    pair: PreferencePair, weights: Mapping[Kind, float], pool: Pool, seed: int, *, held_out: bool = False
) -> MadePair | None:
    """Return the pair with a made-up response in place of the rejected one, of a kind drawn by weight.

    None if no kind applies.
    """
    for kind in by_weight(weights, generator(seed, "kind", *texts_of(pair))):
        text = make(pair, kind, pool, seed, held_out=held_out)
        if text is not None:
            return made_pair(pair, kind, text)
    return None


def negatives_for(
    pair: PreferencePair,
    pool: Pool,
    n: int,
    seed: int,
    *,
    weights: Mapping[Kind, float] = WEIGHTS,
    held_out: bool = False,
) -> list[Negative]:
    """Return `n` distractors that are worse than the pair's chosen response, all different, none of them the rejected.

    Up to half of them are other responses to the same prompt that are known to be worse, where the pool has them. The
    others are made up, each of another kind as far as kinds apply. Nothing is known of distractors among each other,
    and nothing against the rejected response. Fewer come back only if the kinds with a weight have no more to give.
    """
    worse = pool.worse(pair)
    places = generator(seed, SAME_PROMPT, *texts_of(pair)).permutation(len(worse))[: (n + 1) // 2]
    found = {worse[place]: SAME_PROMPT for place in places}
    used = {pair.chosen, pair.rejected}
    for turn in range(4 * n):
        turn_seed = seed + 1_000_003 * turn
        for kind in by_weight(weights, generator(turn_seed, "kinds", *texts_of(pair))):
            if len(found) >= n:
                return [Negative(kind, text) for text, kind in found.items()]
            text = make(pair, kind, pool, turn_seed, held_out=held_out)
            if text is not None and text not in used:
                found.setdefault(text, kind)
    return [Negative(kind, text) for text, kind in found.items()]


def made_pair(pair: PreferencePair, kind: Kind, text: str) -> MadePair:
    """Return the pair with a made-up response, which is certainly worse, and the weight of the pair."""
    return MadePair(
        prompt=pair.prompt,
        chosen=pair.chosen,
        rejected=text,
        domain=pair.domain,
        subset=pair.subset,
        weight=pair.weight,
        kind=kind,
    )


def by_weight(weights: Mapping[Kind, float], rng: Generator) -> list[Kind]:
    """Return the kinds in random order: each place is drawn by weight among those left (Efraimidis and Spirakis)."""
    kinds = [kind for kind in KINDS if weights.get(kind, 0) > 0]
    return [kinds[i] for i in np.argsort([rng.exponential() / weights[kind] for kind in kinds])]


def texts_of(pair: PreferencePair) -> tuple[str, str, str]:
    return pair.prompt, pair.chosen, pair.rejected


def generator(seed: int, *texts: str) -> Generator:
    """Return a random generator that depends on its arguments only."""
    whole = "\0".join([str(seed), *texts]).encode(errors="surrogatepass")
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(whole, digest_size=16).digest()))


# Which prompts are harmless or harmful


def refuses(text: str) -> bool:
    """Return whether a response begins with a refusal."""
    return bool(REFUSES.search(text[:160]))


def is_harmless(pair: PreferencePair) -> bool:
    """Return whether it is clear that the prompt deserves an answer.

    Clear is a prompt of a named domain other than safety whose better response is no refusal; or, in safety, a single
    question whose better response is long and whose worse one refuses.
    """
    if pair.domain is None or refuses(pair.chosen):
        return False
    if pair.domain != SAFETY:
        return True
    is_dialogue = pair.prompt.startswith(f"{FIGURE2.turn_names['user']}: ")
    return not is_dialogue and len(pair.chosen) >= 100 and refuses(pair.rejected)


def is_harmful(pair: PreferencePair) -> bool:
    """Return whether it is clear that the prompt must be refused: in safety, the better response refuses alone."""
    return pair.domain == SAFETY and refuses(pair.chosen) and not refuses(pair.rejected)


# Kinds


def blank(case: Case) -> str:
    length = 1 if case.rng.random() < 0.3 else min(case.length(), 400)
    unit = BLANKS[pick(case.rng, len(BLANKS))]
    return (unit * length)[:length]


def one_character(case: Case) -> str | None:
    return CHARACTERS[pick(case.rng, len(CHARACTERS))] if len(case.good.strip()) >= SHORT else None


def off_topic(case: Case) -> str | None:
    # A few words such as "You're welcome" may suit many prompts, and a refusal suits a harmful one.
    min_words = min(8, len(case.good.split()))
    return case.pool.off_topic(
        case.pair, case.length(), case.rng, lambda text: len(text.split()) >= min_words and not refuses(text)
    )


def echo(case: Case) -> str | None:
    request, whole = case.request, case.pair.prompt.strip()
    if ASKS_FOR_AN_ECHO.search(request) or case.good.strip() in request:
        return None
    lead = case.one_of(
        ("You asked:", "Your question was:", "Question:", "You said:", "The user wrote:", "Prompt:", ">")
    )
    forms = (request, request, whole, f"{lead} {request}", f'"{request}"', f"{request}\n{request}", f"{request}?")
    return forms[pick(case.rng, len(forms))]


def other_language(case: Case) -> str | None:
    own = language_of(case.request)
    if own is None or language_of(case.good) not in (None, own) or ABOUT_LANGUAGES.search(case.pair.prompt):
        return None
    others = [language for language in SENTENCES if language != own]
    language = others[pick(case.rng, len(others))]
    sentences = case.several(SENTENCES[language], case.length()) or [case.one_of(SENTENCES[language])]
    return ("" if language in ("zh", "ja") else " ").join(sentences)


def refusal(case: Case) -> str | None:
    if not is_harmless(case.pair):
        return None
    core = case.one_of(say.REFUSAL_CORES)
    first = f"{case.one_of(say.REFUSAL_OPENINGS)} {core}" if case.rng.random() < 0.8 else core[0].upper() + core[1:]
    # Most refusals are short.
    rest = case.several(say.REFUSAL_REASONS, case.length() - len(first)) if case.rng.random() < 0.6 else []
    ending = [case.one_of(say.REFUSAL_ENDINGS)] if case.rng.random() < 0.4 else []
    return " ".join([first, *rest, *ending])


def compliance(case: Case) -> str | None:
    if not is_harmful(case.pair):
        return None
    title = [case.one_of(say.COMPLIANCE_TITLES).format(request=case.request)] if case.rng.random() < 0.7 else []
    opening = "\n".join([case.one_of(say.COMPLIANCE_OPENINGS), *title])
    steps = case.several(say.COMPLIANCE_STEPS, case.length() - len(opening))
    style = pick(case.rng, 4)
    numbered = [(f"{i}. {s}", f"Step {i}: {s}", f"- {s}", s)[style] for i, s in enumerate(steps, start=1)]
    ending = [case.one_of(say.COMPLIANCE_ENDINGS)] if case.rng.random() < 0.5 else []
    return (" " if style == 3 else "\n").join([opening, *numbered, *ending])


def rude(case: Case) -> str:
    """Return insults alone, or around the good response."""
    sentences = case.several(say.RUDE, case.length()) or [case.one_of(say.RUDE)]
    if case.rng.random() < 0.65:
        return " ".join(sentences)
    before, after = sentences[:2], sentences[2:3]
    return " ".join([*before, case.good, *after])


def altered(change: Callable[[str, Generator], str | None], case: Case) -> str | None:
    """Return the good response with one change; None for one that is too long to be seen whole."""
    return change(case.good, case.rng) if len(case.good) <= MAX_ALTERED else None


def changed_number(case: Case) -> str | None:
    is_exact = case.pair.domain in EXACT and not damage.is_code(case.good)
    return altered(damage.changed_number, case) if is_exact else None


MAKERS: Final[Mapping[Kind, Callable[[Case], str | None]]] = {
    "empty": lambda _: "",
    "blank": blank,
    "one_character": one_character,
    "repetition": lambda case: damage.repetition(case.good, case.length(), case.rng),
    "keyboard_mash": lambda case: damage.keyboard_mash(case.length(), case.rng),
    "shuffled_words": lambda case: damage.shuffled_words(case.good, case.rng),
    "truncated": lambda case: altered(damage.truncated, case),
    "off_topic": off_topic,
    "echo": echo,
    "other_language": other_language,
    "refusal": refusal,
    "compliance": compliance,
    "rude": rude,
    "changed_number": changed_number,
    "planted_bug": lambda case: altered(damage.planted_bug, case),
}
