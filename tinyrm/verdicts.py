"""Read what rows of preference sets hold besides their texts: labels, weights, ties, and scores of several responses.

`tinyrm.preferences` reads the texts.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tinyrm.chat import list_keys
from tinyrm.errors import MissingText, UnknownForm, describe
from tinyrm.preferences import PREFERENCE_COLUMNS, Texts, read_preference

# Probabilities of 0 and 1 have no finite log-odds.
CLOSEST_TO_CERTAIN = 1e-6
MAX_WEIGHT = 1e9  # the sum of many stays finite, in fp32 too
PAIRS_PER_ROW = 6  # all pairs of four responses

LABEL_COLUMNS = ("probability", "margin", "weight")
# The columns with the scores of two responses, that of the chosen one first.
SCORE_COLUMNS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),  # Argilla
)
# Two responses, neither of which is the chosen one by its name: `winner` names it.
RIVAL_COLUMNS = (("response_a", "response_b"), ("conversation_a", "conversation_b"))
TIES = {"true": True, "yes": True, "1": True, "1.0": True, "false": False, "no": False, "0": False, "0.0": False}
WINNERS = {"a": "a", "b": "b", "tie": "tie", "draw": "tie", "both": "tie", "neither": "tie"}
# A column with all responses to a prompt; each is a text, messages, or an object with a text and a score or a rank.
RESPONSES_COLUMNS = ("completions", "responses", "answers", "candidates", "generations", "outputs")
TEXT_KEYS = ("response", "answer", "text", "content", "completion", "output")
SCORE_KEYS = ("overall_score", "score", "rating", "reward")
RANK_KEYS = ("rank", "ranking")
# The same in a list beside that of the responses.
SCORES_COLUMNS = ("scores", "ratings", "rating", "rewards")
RANKS_COLUMNS = ("ranks", "rankings", "rank", "ranking")


class Label(BaseModel):
    """How sure it is that the chosen response of a pair is the better one, and how much the pair counts.

    probability: that it is the better one; 0.5 is a tie, and below that the other one is the better one.
    margin: the log-odds of that, in place of the probability. Without either the verdict is certain.
    weight: relative to that of other pairs.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    probability: float | None = Field(default=None, ge=0, le=1)
    margin: float | None = Field(default=None, allow_inf_nan=False)
    weight: float = Field(default=1.0, gt=0, le=MAX_WEIGHT, allow_inf_nan=False)

    @field_validator("weight", mode="before")
    @classmethod
    def _missing_weight(cls, value: object) -> object:
        """A column of a table has None where a row has no weight."""
        return 1.0 if value is None else value

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.probability is not None and self.margin is not None:
            raise ValueError("a pair has a `probability` or a `margin`, which is its log-odds; leave one of them out")
        return self

    @property
    def is_soft(self) -> bool:
        """Whether there is a probability, so that the verdict is not taken as certain."""
        return self.probability is not None or self.margin is not None

    @property
    def target(self) -> float:
        """The probability that the chosen response is the better one; 1 for a plain verdict."""
        if self.margin is not None:
            return 1 / (1 + math.exp(-self.margin)) if self.margin > -700 else 0.0
        return 1.0 if self.probability is None else self.probability

    @property
    def is_tie(self) -> bool:
        return self.target == 0.5

    def log_odds(self) -> float:
        """Return the log-odds of `target`, which are finite."""
        if self.margin is not None:
            return self.margin
        p = min(max(self.target, CLOSEST_TO_CERTAIN), 1 - CLOSEST_TO_CERTAIN)
        return math.log(p / (1 - p))


@dataclass(frozen=True, slots=True)
class Rules:
    """What becomes of scores and ties.

    margin_per_point: factor from a difference of scores to a margin; None takes the verdict alone.
    learn_ties: whether a tie counts among the pairs of a row; otherwise it is only reported.
    pairs_per_row: of a row with more responses.
    """

    margin_per_point: float | None = None
    learn_ties: bool = False
    pairs_per_row: int = PAIRS_PER_ROW


class Judged(NamedTuple):
    """Two responses and what is known of them. is_tie: the row says that neither is better, without a probability."""

    texts: Texts
    label: Label
    is_tie: bool = False


PLAIN = Rules()


def read_judged(row: Mapping[str, Any], rules: Rules = PLAIN) -> list[Judged]:
    """Return the pairs of a row: one, or several of a row with several responses.

    Understands all forms of `tinyrm.preferences.read_preference`, and

    * `probability` or `margin`, and `weight`;
    * `tie`, and `winner` (a, b, model_a, model_b, tie), or a label of A, beside `response_a` and `response_b` or
      `conversation_a` and `conversation_b`;
    * with `margin_per_point`, `score_chosen` and `score_rejected`;
    * several responses in `completions`, `responses` or `answers` with scores (the higher, the better) or ranks (1 is
      the best), in each response or in a list beside them, as in UltraFeedback and Nectar.

    Raises UnknownForm, also for a label or a score that cannot be read, MissingText, Mismatch, and InvalidRequest for a
    message that cannot be read.
    """
    if not any(a in row and b in row for a, b in PREFERENCE_COLUMNS):
        if column := next((name for name in RESPONSES_COLUMNS if isinstance(row.get(name), list | tuple)), None):
            return pairs_of_several(row, column, rules)
        row, is_tie = by_winner(row)
    else:
        is_tie = winner_of(row) == "tie"
    texts = read_preference(row)
    label = read_label(row)
    if rules.margin_per_point is not None:
        if label.is_soft:
            raise UnknownForm("there is a probability or a margin, and the source makes margins of scores; drop one")
        better, worse = scores_of(row)
        margin = rules.margin_per_point * (better - worse)
        return [Judged(texts, label.model_copy(update={"margin": margin}))]
    return [Judged(texts, label, is_tie=is_tie and not label.is_soft)]


def read_label(row: Mapping[str, Any]) -> Label:
    """Return the label of a row. An empty cell is none. Raises UnknownForm."""
    try:
        return Label.model_validate({name: row[name] for name in LABEL_COLUMNS if row.get(name) not in (None, "")})
    except ValidationError as error:
        name = next(iter(error.errors()[0]["loc"]), None)
        hint = (
            f" (a column with another meaning is left out by `columns: {{{name}: null}}` in a recipe)" if name else ""
        )
        raise UnknownForm(f"{describe(error)}{hint}") from error


def by_winner(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """Return a row of two rivals with the better one as `chosen`, or A if there is a label; and whether they tie.

    Raises UnknownForm for a row that does not say which one is better, or whose label does not name a response.
    """
    names = next((pair for pair in RIVAL_COLUMNS if pair[0] in row and pair[1] in row), None)
    winner = winner_of(row)
    label = read_label(row) if names else Label()
    if winner in ("a", "b") and label.target < 0.5:
        raise UnknownForm(
            f"the winner is {winner}, and the probability or the margin is for the other one: beside a "
            "`winner` it is that the winner is better; if it is of A, leave the column `winner` out"
        )
    if names and (winner or label.is_soft):
        better, worse = names if winner != "b" else names[::-1]
        rest = {name: value for name, value in row.items() if name not in names}
        return {**rest, "chosen": row[better], "rejected": row[worse]}, winner == "tie"
    if "label" in row or "labels" in row:
        raise UnknownForm(
            "a `label` does not say of which response it is: a row needs a prompt with `chosen` and `rejected`, or "
            "`response_a` and `response_b` with a `winner` (a, b or tie); rows of one response with a label each "
            f"(unpaired, as for KTO) hold no pairs; this one has {list_keys(row)}"
        )
    if names:
        raise UnknownForm(
            f"{names[0]} and {names[1]} do not say which one is better: a row needs a `winner` (a, b or tie) or a "
            f"`probability` of A beside them, or `chosen` and `rejected`; this one has {list_keys(row)}"
        )
    return row, False


def winner_of(row: Mapping[str, Any]) -> str | None:
    """Return a, b or tie, as a row's columns `winner` or `tie` say; None if they say nothing.

    Raises UnknownForm for a `tie` that is neither true nor false: read as a verdict, it would teach one.
    """
    tie = row.get("tie")
    is_tie = TIES.get(str(tie).strip().lower()) if tie not in (None, "") else False
    if is_tie is None:
        raise UnknownForm(
            f"tie must be true or false, not {str(tie)[:40]!r} (a column with another meaning is left out by "
            "`columns: {tie: null}` in a recipe)"
        )
    if is_tie:
        return "tie"
    word = str(row.get("winner") or "").strip().lower().removeprefix("model_").removeprefix("response_")
    return WINNERS.get("tie" if word.startswith("tie") else word)


def scores_of(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return the scores of the chosen and the rejected response. Raises UnknownForm if there are none."""
    names = next((pair for pair in SCORE_COLUMNS if all(row.get(name) not in (None, "") for name in pair)), None)
    if names is None:
        raise UnknownForm(
            f"the source makes margins of scores, and there are no {' and '.join(SCORE_COLUMNS[0])}; name them with "
            f"`columns`, or remove `scores`; this one has {list_keys(row)}"
        )
    return number(row[names[0]], names[0]), number(row[names[1]], names[1])


def number(value: Any, name: str) -> float:
    """Return a value as a number; tables often have it as a text. Raises UnknownForm."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise UnknownForm(f"{name} must be a finite number, not {value!r}")
    return found


class Scored(NamedTuple):
    """A response, a text or messages, and how good it is: the higher, the better; None if that is not known."""

    response: Any
    score: float | None


def pairs_of_several(row: Mapping[str, Any], column: str, rules: Rules) -> list[Judged]:
    """Return the pairs of a row with several responses, at most `pairs_per_row`; which ones depends on texts only.

    The responses of a pair differ in their scores. Ties beyond these are returned too, to be counted, unless they are
    learnt from, when they count among the others.

    Raises MissingText if fewer than two responses have a score.
    """
    label = read_label(row)
    if label.is_soft:
        raise UnknownForm(f"a probability or a margin is of two responses, and {column} holds several")
    scored, is_ranked = read_scored(row, column)
    known = [one for one in scored if one.score is not None]
    if len(known) < 2:
        raise MissingText(f"{column} holds fewer than two responses with a score or a rank")
    if is_ranked and rules.margin_per_point is not None:
        raise UnknownForm(f"the source makes margins of scores, and {column} has ranks, which have no distance")
    ordered = sorted(known, key=lambda one: -(one.score or 0.0))
    rest = {name: value for name, value in row.items() if name != column}
    verdicts, ties = list[Judged](), list[Judged]()
    for better, worse in combinations(ordered, 2):
        texts = read_preference({**rest, "chosen": better.response, "rejected": worse.response})
        difference = (better.score or 0.0) - (worse.score or 0.0)
        own = label
        if rules.margin_per_point is not None:
            own = label.model_copy(update={"margin": rules.margin_per_point * difference})
        (verdicts if difference else ties).append(Judged(texts, own, is_tie=not difference and not own.is_soft))
    if rules.learn_ties:
        return take(verdicts + ties, rules.pairs_per_row)
    return take(verdicts, rules.pairs_per_row) + ties


def take(pairs: list[Judged], count: int) -> list[Judged]:
    """Return `count` pairs in their order, chosen by their texts."""

    def key(place: int) -> bytes:
        texts = pairs[place].texts
        return hashlib.blake2b(f"{texts.chosen}\0{texts.rejected}".encode(errors="surrogatepass")).digest()

    return [pairs[place] for place in sorted(sorted(range(len(pairs)), key=key)[:count])]


def read_scored(row: Mapping[str, Any], column: str) -> tuple[list[Scored], bool]:
    """Return the responses in a column, and whether ranks were read; a rank counts as its negative. Raises UnknownForm.

    A response has scores of its own or in a list beside it.
    """
    items: Sequence[Any] = row[column]
    for names, is_ranked in ((SCORES_COLUMNS, False), (RANKS_COLUMNS, True)):
        beside = next((name for name in names if isinstance(row.get(name), list | tuple)), None)
        if beside:
            values = row[beside]
            if len(values) != len(items):
                raise UnknownForm(f"{column} holds {len(items)} responses, and {beside} holds {len(values)} values")
            scores = [None if value is None else number(value, beside) for value in values]
            return [
                Scored(text_of(item, column), None if score is None else (-score if is_ranked else score))
                for item, score in zip(items, scores, strict=True)
            ], is_ranked
    objects = [item for item in items if isinstance(item, Mapping)]
    is_ranked = not any(own_score(item) is not None for item in objects)
    if len(objects) < len(items) or (is_ranked and not any(own_rank(item) is not None for item in objects)):
        raise UnknownForm(
            f"{column} holds {len(items)} responses without scores or ranks: each needs a score (`overall_score`, "
            f"`score`, `rating`) or a `rank`, or the row a list `scores` or `ranks`; this row has {list_keys(row)}"
        )
    found = []
    for item in objects:
        rank = own_rank(item)
        score = own_score(item) if not is_ranked else None if rank is None else -rank
        found.append(Scored(text_of(item, column), score))
    return found, is_ranked


def text_of(item: Any, column: str) -> Any:
    """Return the text or the messages of a response. Raises UnknownForm."""
    if not isinstance(item, Mapping):
        return item
    name = next((name for name in TEXT_KEYS if name in item), None)
    if name is None:
        raise UnknownForm(f"a response in {column} has none of {', '.join(TEXT_KEYS)}; it has {list_keys(item)}")
    return item[name]


def own_score(item: Mapping[str, Any]) -> float | None:
    """Return the score in a response: the mean rating over its aspects if there are some, else one of SCORE_KEYS.

    UltraFeedback has both. Its overall scores were published with errors once, which the authors found by the aspects
    (openbmb/UltraFeedback, update of December 2023), and means have fewer ties.
    """
    aspects = item.get("annotations")
    if isinstance(aspects, Mapping):
        ratings = [aspect.get("Rating") for aspect in aspects.values() if isinstance(aspect, Mapping)]
        known = [number(rating, "Rating") for rating in ratings if rating not in (None, "", "N/A")]
        if known:
            return math.fsum(known) / len(known)
    name = next((name for name in SCORE_KEYS if item.get(name) is not None), None)
    return None if name is None else number(item[name], name)


def own_rank(item: Mapping[str, Any]) -> float | None:
    name = next((name for name in RANK_KEYS if item.get(name) is not None), None)
    return None if name is None else number(item[name], name)
