"""What travels between the service and its engine process: frames over a socket pair. No pickle.

A frame is its length and its payload. The engine's first frame is a JSON greeting; then requests go one way
(id, readings, their lengths, their ids) and replies the other (id, seconds, logits or the text of an error).
"""

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyrm.encoding import Encoding

LENGTH = struct.Struct("<I")
_REQUEST = struct.Struct("<QI")
_REPLY = struct.Struct("<Qd?")


def framed(payload: bytes) -> bytes:
    return LENGTH.pack(len(payload)) + payload


def greeting(fields: dict[str, Any]) -> bytes:
    return framed(json.dumps(fields).encode())


def request(number: int, readings: Sequence[Encoding]) -> bytes:
    lengths = np.array([len(reading) for reading in readings], dtype=np.int32)
    ids = np.concatenate([reading.input_ids for reading in readings]).astype(np.int32)
    return framed(_REQUEST.pack(number, len(readings)) + lengths.tobytes() + ids.tobytes())


def parse_request(payload: bytes) -> tuple[int, list[NDArray[np.int32]]]:
    number, rows = _REQUEST.unpack_from(payload)
    lengths = np.frombuffer(payload, np.int32, rows, _REQUEST.size)
    ids = np.frombuffer(payload, np.int32, offset=_REQUEST.size + lengths.nbytes)
    return number, np.split(ids, np.cumsum(lengths)[:-1])


def reply(number: int, seconds: float, answer: NDArray[np.float32] | str) -> bytes:
    failed = isinstance(answer, str)
    content = answer.encode() if isinstance(answer, str) else np.ascontiguousarray(answer, np.float32).tobytes()
    return framed(_REPLY.pack(number, seconds, failed) + content)


def parse_reply(payload: bytes) -> tuple[int, float, NDArray[np.float32] | str]:
    number, seconds, failed = _REPLY.unpack_from(payload)
    content = payload[_REPLY.size :]
    return number, seconds, content.decode() if failed else np.frombuffer(content, np.float32).reshape(-1, 2)
