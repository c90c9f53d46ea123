"""Adapters from trainers, benchmark harnesses and data tools to a TinyRM service.

One module for each tool. No module imports its tool, so each can be imported wherever the client can.
"""

from collections.abc import Mapping
from typing import Any, cast

from tinyrm.chat import TextOrTurns, to_prompt, to_response
from tinyrm.client import CompareItem


def compare_item(prompt: TextOrTurns, a: TextOrTurns, b: TextOrTurns, options: Mapping[str, Any]) -> CompareItem:
    """Return an item of `Client.compare_many`.

    options: of `Client.compare`; not checked here, since the service reports invalid options.
    """
    texts = {"prompt": to_prompt(prompt), "response_a": to_response(a), "response_b": to_response(b)}
    return cast("CompareItem", texts | dict(options))
