"""Dialogues as the published sets write them -> one prompt text as the product renders it, and two responses."""

from collections.abc import Sequence

from tinyrm.chat import Message
from tinyrm.errors import InvalidRequest, Mismatch, MissingText, UnknownForm
from tinyrm.preferences import Texts, read_preference
from tinyrm.template import FIGURE2
from tinyrm.verdicts import Label
from training.data.cleaning import Raw, Reason
from training.data.rows import Row


def render(turns: Sequence[Message]) -> str:
    """Render as the service renders the messages of a request. By default every template names the speakers alike."""
    return FIGURE2.render_messages(turns)


def read_row(row: Row, domain: str | None, origin: str | None) -> Raw | Reason:
    """Return the pair of a row of a published set, or why it has none.

    Raises UnknownForm, which names the columns or keys, for a row in no form of `tinyrm.preferences`.
    """
    try:
        return to_raw(read_preference(row), domain, origin)
    except InvalidRequest as error:
        return reason_of(error)


def to_raw(texts: Texts, domain: str | None, origin: str | None, label: Label | None = None) -> Raw:
    prompt = texts.prompt if isinstance(texts.prompt, str) else render(texts.prompt)
    return Raw(prompt, texts.chosen, texts.rejected, domain=domain, origin=origin, label=label)


def reason_of(error: InvalidRequest) -> Reason:
    """Return why a row has no pair; raises the error if other rows of the set, most likely, have the same fault."""
    if isinstance(error, UnknownForm):
        raise error
    if isinstance(error, MissingText):
        return "empty"
    return "mismatch" if isinstance(error, Mismatch) else "unreadable"
