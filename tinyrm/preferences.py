"""Read rows of preference sets, of every common form, as a prompt with a chosen and a rejected response.

A row in another form is refused with the columns or keys that it has; it is never read as something else.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinyrm.chat import Prompt, Speaker, join_turns, list_keys, list_turns, read_turn, to_message
from tinyrm.errors import InvalidRequest, Mismatch, MissingText, UnknownForm
from tinyrm.markup import parse_turns

# The columns of the two responses, the preferred one first.
PREFERENCE_COLUMNS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),  # Argilla
    ("response_j", "response_k"),  # StackExchange, paired
)
# Those of our own API: none is preferred, and texts are never taken apart.
OWN_COLUMNS = ("response_a", "response_b")
PROMPT_COLUMNS = ("prompt", "question", "instruction", "query")
# Columns with the turns before the responses. Some sets have a whole conversation there, and the prompt elsewhere.
HISTORY_COLUMNS = ("conversations", "messages", "trajectory")
SYSTEM_COLUMNS = ("system", "system_prompt")
CONTEXT_COLUMNS = {"instruction": "input"}  # Alpaca: the text that the instruction is about

# A prompt of fewer words may begin both responses by accident; the end of a sentence counts as a word.
MIN_REPEATED_WORDS = 3

# Messages that were written as text, by json.dumps or str.
WRITTEN_MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](role|content|from|value)["']\s*:""")

Turn = tuple[Speaker, str]


@dataclass(frozen=True, slots=True)
class Texts:
    """A prompt and two responses, which may be empty.

    prompt_column: the column of the prompt; None if it is only a part of the conversations.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    prompt_column: str | None


def columns_read() -> set[str]:
    """Return the names of all columns that `read_preference` may read."""
    responses = {name for pair in (OWN_COLUMNS, *PREFERENCE_COLUMNS) for name in pair}
    return {*responses, *PROMPT_COLUMNS, *HISTORY_COLUMNS, *SYSTEM_COLUMNS, *CONTEXT_COLUMNS.values()}


def find_responses(columns: Iterable[str], *, own: bool = False) -> tuple[str, str]:
    """Return the names of the columns with the responses. Raises UnknownForm with the columns that there are.

    own: whether they may also be those of the API, which come first then.
    """
    present = dict.fromkeys(columns)
    known = (OWN_COLUMNS, *PREFERENCE_COLUMNS) if own else PREFERENCE_COLUMNS
    for pair in known:
        if pair[0] in present and pair[1] in present:
            if pair == OWN_COLUMNS and "prompt" not in present:
                raise UnknownForm(f"prompt is missing; this one has {list_keys(present)}")
            return pair
    halves = [f"{b if a in present else a} is missing" for a, b in known if a in present or b in present]
    raise UnknownForm(
        f"{(halves or ['no two responses'])[0]}: a pair has a `prompt` and `chosen` and `rejected` (or "
        f"{', or '.join(' and '.join(pair) for pair in known if pair != PREFERENCE_COLUMNS[0])}); "
        f"this one has {list_keys(present)}"
    )


def read_preference(row: Mapping[str, Any], *, own: bool = False) -> Texts:
    """Return the texts of a row.

    own: as in `find_responses`.

    Understands

    * a prompt and two responses, each a text or chat messages (`tinyrm.chat.read_turn` lists the forms of messages);
    * responses that are whole conversations, with or without a column that repeats their prompt: what both begin with
      is the prompt, with its system message and its earlier turns;
    * the same in texts: transcripts with `Human:` and `Assistant:`, texts in a chat template, texts that both begin
      with the prompt;
    * a system message in a column of its own.

    Raises UnknownForm, MissingText or Mismatch, and InvalidRequest for a message that cannot be read.
    """
    names = find_responses(row, own=own)
    chosen, rejected = (_present(row, name) for name in names)
    column = next((name for name in PROMPT_COLUMNS if name in row), None)
    prompt = None if column is None else _present(row, column)
    if names == OWN_COLUMNS:
        row = {}  # other columns do not belong to the texts
    else:
        prompt = _parse_messages(prompt, str(column))
        if isinstance(chosen, str) and isinstance(rejected, str):
            chosen, rejected = _take_apart(chosen, rejected, names, prompt)
    responses = _read_turns(chosen, names[0]), _read_turns(rejected, names[1])
    if any(map(_has_user, responses)):
        return _split(responses, names, prompt, column)
    if prompt is None:
        column, prompt = _find_history(row, names)
    if names != OWN_COLUMNS or not isinstance(prompt, str):
        prompt = _complete(prompt, str(column), row)
    return Texts(prompt, _join_response(responses[0], names[0]), _join_response(responses[1], names[1]), column)


def _find_history(row: Mapping[str, Any], names: tuple[str, str]) -> tuple[str, str | list[Any]]:
    """Return the column and the value of the turns before two responses that have no prompt."""
    column = next((name for name in HISTORY_COLUMNS if name in row), None)
    texts = [row[name] for name in names if isinstance(row[name], str)]
    if column is None and any(map(parse_turns, texts)):
        raise Mismatch(f"{names[0]} and {names[1]} are not both dialogues that end in a turn of the assistant")
    if column is None and any(map(str.strip, texts)):
        raise UnknownForm(
            f"no prompt: there is none of the columns {', '.join(PROMPT_COLUMNS)}, and {names[0]} and {names[1]} are "
            "texts, but not of whole conversations (transcripts with `Human:` and `Assistant:`, or chat templates); "
            f"this row has {list_keys(row)}"
        )
    if column is None:
        raise MissingText(f"{names[0]} and {names[1]} hold no turn before the response, and there is no prompt")
    history = _present(row, column)
    if not isinstance(history, str) and _read_turns(history, column)[-1][0] == "assistant":
        raise Mismatch(f"{column} ends in a turn of the assistant, so {names[0]} is no response to it")
    return column, history


def _split(
    conversations: tuple[Sequence[Turn], Sequence[Turn]], names: tuple[str, str], prompt: Any, column: str | None
) -> Texts:
    """Return the texts of two whole conversations.

    prompt: a part of what both begin with, or None.
    """
    a, b = conversations
    end, longest = 0, min(len(a), len(b)) - 1
    while end < longest and a[end] == b[end]:
        end += 1
    while end and not (a[end][0] == b[end][0] == "assistant"):
        end -= 1
    before = [to_message(*turn) for turn in a[:end] if turn[1]]
    if not _has_user(a[:end]) or not before:
        raise Mismatch(f"the conversations in {names[0]} and {names[1]} do not begin with the same prompt")
    if prompt is not None:
        given = [to_message(*turn)["content"].strip() for turn in _prompt_turns(prompt, str(column)) if turn[1]]
        own = [message["content"].strip() for message in before]
        # At the beginning, after a system message, at the end, or one question among several.
        is_part = given in (own[: len(given)], own[1 : len(given) + 1], own[-len(given) :])
        if given and not is_part and not (len(given) == 1 and given[0] in own):
            raise Mismatch(f"the conversations in {names[0]} and {names[1]} do not begin with {column}")
    return Texts(before, _join_response(a[end:], names[0]), _join_response(b[end:], names[1]), column)


def _join_response(turns: Sequence[Turn], name: str) -> str:
    """Return a response as one text: the assistant's turns, with the results of its tools among them."""
    if any(speaker in ("user", "system") for speaker, _ in turns):
        raise Mismatch(
            f"{name} has turns of the user after those that both conversations begin with, so the two responses are "
            "not to the same prompt"
        )
    if turns[-1][0] != "assistant":
        raise Mismatch(f"{name} does not end in a turn of the assistant")
    return join_turns(turns)


def _take_apart(chosen: str, rejected: str, names: tuple[str, str], prompt: Any) -> tuple[Any, Any]:
    """Return two texts as messages if both are whole conversations, else without the prompt if both repeat it."""
    parsed = parse_turns(chosen), parse_turns(rejected)
    # A response may begin with `Human:` too, if a prompt is a dialogue of that kind.
    if all(_has_user(turns) and turns[0][0] != "assistant" and turns[-1][0] == "assistant" for turns in parsed):
        a, b = ([{"role": speaker, "content": text} for speaker, text in turns] for turns in parsed)
        return a, b
    if WRITTEN_MESSAGES.match(chosen) and WRITTEN_MESSAGES.match(rejected):
        return _parse_messages(chosen, names[0]), _parse_messages(rejected, names[1])
    return _without_prompt(prompt, chosen, rejected) if isinstance(prompt, str) else (chosen, rejected)


def _without_prompt(prompt: str, chosen: str, rejected: str) -> tuple[str, str]:
    """Return both texts without the prompt if both begin with it, as those of language models do."""
    start = prompt.rstrip()
    texts = [chosen.lstrip(), rejected.lstrip()]
    words = len(start.split(maxsplit=MIN_REPEATED_WORDS)) + start.endswith((".", "?", "!", ":"))
    is_repeated = words >= MIN_REPEATED_WORDS and all(text.startswith(start.lstrip()) for text in texts)
    rests = [text[len(start.lstrip()) :] for text in texts]
    if is_repeated and all(rest[:1].isspace() and rest.strip() for rest in rests):
        return rests[0].strip(), rests[1].strip()
    return chosen, rejected


def _complete(prompt: Any, column: str, row: Mapping[str, Any]) -> Prompt:
    """Return the prompt with the texts that belong to it in other columns."""
    turns = _prompt_turns(prompt, column)
    rest = row.get(CONTEXT_COLUMNS.get(column, ""))
    if isinstance(prompt, str) and isinstance(rest, str) and rest.strip():
        turns = [("user", f"{prompt}\n\n{rest}")]
    system = next((row[name] for name in SYSTEM_COLUMNS if isinstance(row.get(name), str) and row[name].strip()), None)
    if system and turns[0][0] != "system":
        turns = [("system", system), *turns]
    if isinstance(prompt, str) and turns == [("user", prompt)]:
        return prompt
    messages = [to_message(*turn) for turn in turns if turn[1]]
    if not messages:
        raise MissingText(f"{column} has no text")
    return messages


def _prompt_turns(prompt: Any, column: str) -> list[Turn]:
    """Return the turns of a prompt: one for a text, unless it is a transcript that the assistant must continue."""
    if not isinstance(prompt, str):
        return _read_turns(prompt, column)
    turns = parse_turns(prompt)
    is_open = bool(turns) and turns[-1] == ("assistant", "")
    return turns[:-1] if is_open and _has_user(turns) else [("user", prompt)]


def _read_turns(value: Any, name: str) -> list[Turn]:
    """Return the turns of a response or a prompt; a text is one turn of the assistant."""
    if isinstance(value, str):
        return [("assistant", value)]
    turns = []
    for number, turn in enumerate(value):
        try:
            turns.append(read_turn(turn))
        except InvalidRequest as error:
            raise type(error)(f"{name}.{number}: {error}") from None
    return turns


def _has_user(turns: Iterable[Turn]) -> bool:
    return any(speaker == "user" for speaker, _ in turns)


def _present(row: Mapping[str, Any], name: str) -> str | list[Any]:
    """Return the text or the turns in a column. Raises MissingText, UnknownForm."""
    value = row[name]
    if isinstance(value, str):
        return value
    turns = list_turns(value, name)
    if not turns:
        raise MissingText(f"{name} holds no messages")
    return turns


def _parse_messages(value: Any, name: str) -> Any:
    """Return the messages that a text holds as JSON, as tables without lists have them; any other value unchanged.

    Raises UnknownForm for messages in another notation.
    """
    if not isinstance(value, str) or not WRITTEN_MESSAGES.match(value):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise UnknownForm(f"{name} is a text that holds messages, but not as JSON; make a list of it first") from None
