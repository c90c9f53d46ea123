"""Adapters from trainers, benchmark harnesses and data tools to a TinyRM service.

One module for each tool. No module imports its tool, so each can be imported wherever the client can.
"""

from collections.abc import Mapping
from typing import Any, cast

from tinyrm.chat import BLANK, TextOrTurns, to_prompt, to_response
from tinyrm.client import CompareItem
from tinyrm.preferences import Texts


def compare_item(prompt: TextOrTurns, a: TextOrTurns, b: TextOrTurns, options: Mapping[str, Any]) -> CompareItem:
    """Return an item of `Client.compare_many`. Raises InvalidRequest for messages that cannot be read.

    options: of `Client.compare`; not checked here, since the service reports invalid options.
    """
    texts = {"prompt": to_prompt(prompt), "response_a": to_response(a), "response_b": to_response(b)}
    return cast("CompareItem", texts | dict(options))


def preference_item(texts: Texts, options: Mapping[str, Any]) -> CompareItem:
    """Return an item whose response A is the chosen one; an empty text becomes a blank."""
    return compare_item(texts.prompt or BLANK, texts.chosen, texts.rejected, options)
