"""What the processes of a service say to each other over a socket: a JSON head, and ids or logits behind it. No pickle.

A message is its length, the length of its head, the head and the rest.
"""

import asyncio
import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyrm.encoding import Encoding, Truncation
from tinyrm.errors import TinyRMError, from_type

LENGTH = struct.Struct("<I")

Message = tuple[dict[str, Any], bytes]


def message(head: dict[str, Any], body: bytes = b"") -> bytes:
    encoded = json.dumps(head).encode()
    return LENGTH.pack(LENGTH.size + len(encoded) + len(body)) + LENGTH.pack(len(encoded)) + encoded + body


def parse(payload: bytes) -> Message:
    """What follows a message's own length."""
    (head,) = LENGTH.unpack_from(payload)
    return json.loads(payload[LENGTH.size : LENGTH.size + head]), payload[LENGTH.size + head :]


async def read(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None when the other side has gone."""
    try:
        (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        return parse(await reader.readexactly(size))
    except (OSError, asyncio.IncompleteReadError):
        return None


def ids_of(readings: Sequence[Encoding]) -> tuple[list[int], bytes]:
    """Lengths, and all ids one after the other."""
    ids = np.concatenate([reading.input_ids for reading in readings]).astype(np.int32)
    return [len(reading) for reading in readings], ids.tobytes()


def readings_of(lengths: Sequence[int], body: bytes) -> tuple[Encoding, ...]:
    """What was cut from them stays with who encoded them."""
    rows = np.split(np.frombuffer(body, np.int32), np.cumsum(lengths)[:-1])
    return tuple(Encoding(row.astype(np.int64), Truncation()) for row in rows)


def logits_of(body: bytes) -> NDArray[np.float32]:
    return np.frombuffer(body, np.float32).reshape(-1, 2)


def error_of(kind: str, text: str) -> TinyRMError:
    return from_type(kind, text)
