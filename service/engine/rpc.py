"""Remote calls between the processes of a service, over one socket: a JSON head, then bytes. No pickle.

A frame holds its length, the length of its head, the head and the body. A field of the head says which kind it is:

    call: number      a request; the other side replies with the same number
    reply: number     the result, or `error` (an error's type) and `message`
    cancel: number    the caller no longer waits for this call
    (none of these)   a notice, which has no reply
"""

import asyncio
import json
import struct
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any, cast

import numpy as np
import structlog
from numpy.typing import NDArray

from tinyrm.encoding import Encoding, Truncation
from tinyrm.errors import EngineFailed, TinyRMError, from_type

log = structlog.get_logger("tinyrm")

LENGTH = struct.Struct("<I")

Message = tuple[dict[str, Any], bytes]
Handler = Callable[["Connection", dict[str, Any], bytes], Message | Awaitable[Message]]


class Connection(asyncio.Protocol):
    """One end of a connection. Both ends may call, reply and send notices.

    handle: returns the reply to a call, or an awaitable of it; may raise. The awaitable runs in a task, which is
    cancelled when the caller cancels the call or disconnects.
    on_notice: called with each notice.
    on_loss: called when the connection is lost. By default pending calls fail; a callback must call `fail` itself.

    An exception in `on_notice` or an invalid frame closes the connection, so both ends notice.
    """

    def __init__(
        self,
        *,
        handle: Handler | None = None,
        on_notice: Callable[[dict[str, Any]], None] | None = None,
        on_loss: Callable[[], None] | None = None,
    ) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._handle, self._on_notice, self._on_loss = handle, on_notice, on_loss
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._numbers = count(1)
        self._calls: dict[int, asyncio.Future[Message]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._failure: TinyRMError | None = None

    async def call(self, head: dict[str, Any], body: bytes = b"") -> Message:
        """Return the reply. Raises the error that the other end raised, or the one passed to `fail`."""
        if self._failure:
            raise self._failure
        number = next(self._numbers)
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._calls[number] = reply
        self._send({"call": number, **head}, body)
        try:
            return await reply
        except asyncio.CancelledError:
            self._send({"cancel": number})
            raise
        finally:
            self._calls.pop(number, None)

    def notify(self, head: dict[str, Any]) -> None:
        """Send a notice. It is dropped if the connection is lost."""
        self._send(head)

    async def finish_calls(self, timeout_s: float) -> None:
        """Wait until this end's calls have replies, at most `timeout_s`."""
        if self._calls:
            await asyncio.wait(list(self._calls.values()), timeout=timeout_s)

    def fail(self, error: TinyRMError) -> None:
        """Close the connection; pending and later calls raise `error`. Only the first error counts."""
        self._failure = self._failure or error
        for reply in self._calls.values():
            if not reply.done():
                reply.set_exception(self._failure)
                reply.exception()  # without this, asyncio logs an error if the caller no longer waits
        self.close()

    def close(self) -> None:
        if self._transport:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _: Exception | None) -> None:
        for task in list(self._tasks.values()):
            task.cancel()
        if not self.lost.done():
            self.lost.set_result(None)
        if self._on_loss:
            self._on_loss()
        else:
            self.fail(EngineFailed("the connection to the other process was lost"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self._received)
            end = LENGTH.size + size
            if len(self._received) < end:
                return
            (head_size,) = LENGTH.unpack_from(self._received, LENGTH.size)
            body_start = 2 * LENGTH.size + head_size
            head, body = json.loads(self._received[2 * LENGTH.size : body_start]), bytes(self._received[body_start:end])
            del self._received[:end]
            self._dispatch(head, body)

    def _dispatch(self, head: dict[str, Any], body: bytes) -> None:
        if (number := head.get("reply")) is not None:
            reply = self._calls.get(number)
            if reply is None or reply.done():
                return
            if "error" in head:
                reply.set_exception(from_type(head["error"], head["message"]))
            else:
                reply.set_result((head, body))
        elif (number := head.get("call")) is not None:
            self._take_call(number, head, body)
        elif (number := head.get("cancel")) is not None:
            if task := self._tasks.get(number):
                task.cancel()
        elif self._on_notice:
            self._on_notice(head)

    def _take_call(self, number: int, head: dict[str, Any], body: bytes) -> None:
        try:
            if self._handle is None:
                raise EngineFailed("this process accepts no calls")
            result = self._handle(self, head, body)
        except Exception as error:  # noqa: BLE001  # carried to the caller
            self._reply(number, error)
            return
        if isinstance(result, tuple):
            self._reply(number, result)
            return

        async def reply_later(awaitable: Awaitable[Message]) -> None:
            try:
                self._reply(number, await awaitable)
            except Exception as error:  # noqa: BLE001  # carried to the caller
                self._reply(number, error)
            finally:
                self._tasks.pop(number, None)

        self._tasks[number] = asyncio.get_running_loop().create_task(reply_later(result))

    def _reply(self, number: int, result: Message | Exception) -> None:
        if isinstance(result, TinyRMError):
            self._send({"reply": number, "error": result.type, "message": str(result)})
        elif isinstance(result, Exception):
            log.error("a call failed", exc_info=result)
            text = f"{type(result).__name__}: {result}"
            self._send({"reply": number, "error": EngineFailed.type, "message": text})
        else:
            fields, body = result
            self._send({"reply": number, **fields}, body)

    def _send(self, head: dict[str, Any], body: bytes = b"") -> None:
        if self._transport is None or self._transport.is_closing():
            return
        encoded = json.dumps(head).encode()
        size = LENGTH.size + len(encoded) + len(body)
        try:
            self._transport.write(LENGTH.pack(size) + LENGTH.pack(len(encoded)) + encoded + body)
        except (OSError, RuntimeError):  # uvloop raises RuntimeError on a transport that it has closed by itself
            self._transport.abort()


def dump_sequences(sequences: Sequence[Encoding]) -> tuple[list[int], bytes]:
    """Return the length of each sequence, and the ids of all of them as bytes."""
    ids = np.concatenate([sequence.input_ids for sequence in sequences]).astype(np.int32)
    return [len(sequence) for sequence in sequences], ids.tobytes()


def load_sequences(lengths: Sequence[int], body: bytes) -> tuple[Encoding, ...]:
    """Return the sequences of `dump_sequences`: their ids. The encoding process keeps what else is known of them."""
    ids = np.frombuffer(body, np.int32).astype(np.int64)
    return tuple(Encoding(row, Truncation()) for row in np.split(ids, np.cumsum(lengths)[:-1]))


def load_logits(body: bytes, sequences: int) -> NDArray[np.float32]:
    return np.frombuffer(body, np.float32).reshape(sequences, -1)
