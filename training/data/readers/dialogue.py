"""Dialogues as the published sets write them -> one prompt text as the product renders it, and two responses."""

from collections.abc import Sequence

from tinyrm.chat import Message
from tinyrm.errors import InvalidRequest, Mismatch, MissingText, UnknownForm
from tinyrm.preferences import read_preference
from tinyrm.template import FIGURE2
from training.data.cleaning import Raw, Reason
from training.data.rows import Row


def render(turns: Sequence[Message]) -> str:
    """Render as the service renders the messages of a request. By default every template names the speakers alike."""
    return FIGURE2.render_messages(turns)


def read_row(row: Row, domain: str | None, origin: str | None) -> Raw | Reason:
    """Return the pair of a row, or why it has none.

    Raises UnknownForm, which names the columns or keys, for a row in no form of `tinyrm.preferences`.
    """
    try:
        texts = read_preference(row)
    except MissingText:
        return "empty"
    except Mismatch:
        return "mismatch"
    except UnknownForm:
        raise
    except InvalidRequest:
        return "unreadable"
    prompt = texts.prompt if isinstance(texts.prompt, str) else render(texts.prompt)
    return Raw(prompt, texts.chosen, texts.rejected, domain=domain, origin=origin)
