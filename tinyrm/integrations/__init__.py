"""Functions and classes that trainers, harnesses and data tools call by their own contracts, over a TinyRM service.

One module for each tool. None imports its tool, so each can be imported wherever the client can.
"""

from collections.abc import Mapping
from typing import Any, cast

from tinyrm.chat import TextOrTurns, to_prompt, to_response
from tinyrm.client import CompareItem


def compare_item(prompt: TextOrTurns, a: TextOrTurns, b: TextOrTurns, options: Mapping[str, Any]) -> CompareItem:
    """Return an item of `Client.compare_many`.

    options: of `Client.compare`, unchecked; the service reports what is wrong with them.
    """
    texts = {"prompt": to_prompt(prompt), "response_a": to_response(a), "response_b": to_response(b)}
    return cast("CompareItem", texts | dict(options))
