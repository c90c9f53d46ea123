"""Read whole request bodies within limits of size, time and nesting, before they are parsed."""

import asyncio
import json
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import OverloadStatus, overload_response, refusal
from service.http.context import find_header, get_context

MIB = 2**20
# A refused body is read and discarded up to this size, or the client would see a broken connection, not the reply.
MAX_DISCARDED_BYTES = 64 * MIB
# A batch of dialogues has five levels.
MAX_NESTING = 32
# Commas, colons and brackets outside of strings: a parser takes seconds for a body of many small values, and blocks the
# event loop. A message of a dialogue has five, so this is 50,000 messages.
MAX_PARTS = 2**18

JSON = (b"content-type", b"application/json")
EMPTY = nullcontext()
# Values of Content-Encoding for a body that is not compressed.
PLAIN = ("", "identity")

PARTS = b"[{:,"
NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}:,"'))
NESTING_STEPS = np.zeros(256, dtype=np.int8)
NESTING_STEPS[list(b"[{")], NESTING_STEPS[list(b"]}")] = 1, -1
IS_PART = np.zeros(256, dtype=np.bool_)
IS_PART[list(PARTS)] = True


@dataclass(slots=True)
class Body:
    """The part of one body that has arrived."""

    chunks: list[bytes] = field(default_factory=list)
    size: int = 0
    buffered: int = 0  # its bytes that count towards max_buffered_bytes
    refusal: Response | None = None  # why the rest is discarded


class BodyLimitMiddleware:
    """Passes whole bodies on as JSON, whatever type they declare: `curl -d` declares a form.

    max_body_bytes: limit of one body.
    max_buffered_bytes: limit of all bodies together, so that slow uploads cannot fill the memory.
    timeout_s: time limit for one body to arrive.
    overload_status: returns the status of a refusal under overload.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int,
        max_buffered_bytes: int,
        timeout_s: float,
        overload_status: OverloadStatus,
    ) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.max_buffered_bytes = max_buffered_bytes
        self.timeout_s = timeout_s
        self.overload_status = overload_status
        self._buffered_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        body = Body()
        if (encoding := (find_header(scope, b"content-encoding") or "").strip().lower()) not in PLAIN:
            message = f"Content-Encoding {encoding[:40]!r} is not supported; send the body as it is"
            body.refusal = refusal("unsupported_encoding", message, {"Accept-Encoding": "identity"})
        try:
            async with EMPTY if get_context(scope).is_whole else asyncio.timeout(self.timeout_s):
                await self._read(body, receive, scope["path"])
        except TimeoutError:
            message = f"the body was not complete after {self.timeout_s:g} s"
            body.refusal = refusal("body_timeout", message, {"Connection": "close"})
        try:
            content = b"".join(body.chunks)
            if not body.refusal and (reason := why_unreadable(content)):
                body.refusal = refusal("invalid_json", reason)
            if body.refusal:
                await body.refusal(scope, receive, send)
                return
            body.chunks.clear()
            scope["headers"] = [*(one for one in scope["headers"] if one[0] != JSON[0]), JSON]
            whole: Message = {"type": "http.request", "body": content, "more_body": False}
            await self.app(scope, replay(whole, receive), send)
        finally:
            self._release(body)

    async def _read(self, body: Body, receive: Receive, path: str) -> None:
        """Read to the end, even if the body is refused: see MAX_DISCARDED_BYTES."""
        has_more = True
        while has_more and body.size <= MAX_DISCARDED_BYTES:
            message = await receive()
            has_more, chunk = message.get("more_body", False), message.get("body", b"")
            body.size += len(chunk)
            if body.refusal:
                continue
            if body.size > self.max_body_bytes:
                limit = f"{self.max_body_bytes / MIB:g} MiB"
                body.refusal = refusal("body_too_large", f"the body is larger than {limit}; send less at once")
            elif self._buffered_bytes + len(chunk) > self.max_buffered_bytes:
                text = f"{self._buffered_bytes} bytes of requests are already in memory; retry after Retry-After"
                body.refusal = overload_response(self.overload_status(path), text)
            if body.refusal:
                self._release(body)
            else:
                body.chunks.append(chunk)
                body.buffered += len(chunk)
                self._buffered_bytes += len(chunk)

    def _release(self, body: Body) -> None:
        body.chunks.clear()
        self._buffered_bytes -= body.buffered
        body.buffered = 0


def replay(first: Message, receive: Receive) -> Receive:
    """Return a `receive` that returns `first` again, then what the server sends next, a disconnect."""
    pending = [first]

    async def next_message() -> Message:
        return pending.pop() if pending else await receive()

    return next_message


def why_unreadable(text: bytes) -> str | None:
    """Return why a JSON parser must not get `text`, whether or not it is valid, or None."""
    if json.detect_encoding(text) not in ("utf-8", "utf-8-sig"):
        return "the body is not JSON in UTF-8"
    if nests_too_deep(text):
        return f"the body nests deeper than {MAX_NESTING} levels"
    if has_too_many_parts(text):
        return f"the body has more than {MAX_PARTS} keys and values; send less at once"
    return None


def nests_too_deep(text: bytes) -> bool:
    """Return whether brackets outside of strings nest deeper than MAX_NESTING, whether or not the JSON is valid.

    Linear in the length and without recursion; a JSON parser could exhaust the stack.
    """
    if text.count(b"[") + text.count(b"{") <= MAX_NESTING:
        return False
    steps = NESTING_STEPS[outside_strings(text)]
    return bool(np.cumsum(steps, dtype=np.int32).max(initial=0) > MAX_NESTING)


def has_too_many_parts(text: bytes) -> bool:
    """Return whether there are more than MAX_PARTS keys and values, whether or not the JSON is valid."""
    if len(text) <= MAX_PARTS or sum(text.count(bytes([part])) for part in PARTS) <= MAX_PARTS:
        return False
    return bool(np.count_nonzero(IS_PART[outside_strings(text)]) > MAX_PARTS)


def outside_strings(text: bytes) -> NDArray[np.uint8]:
    """Return the characters of the JSON's structure, with 0 for each one inside a string."""
    # Without escapes, every remaining quote begins or ends a string.
    unescaped = text.replace(rb"\\", b"").replace(rb"\"", b"")
    structure = np.frombuffer(unescaped.translate(None, NOT_STRUCTURE), dtype=np.uint8)
    in_string = np.cumsum(structure == ord('"'), dtype=np.uint32) % 2 == 1
    return np.where(in_string, np.uint8(0), structure)
