"""The worker's connection to a queue and its engine in another process."""

import asyncio
import math
import os
import socket
import time
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

from service.engine.backend import Backend
from service.engine.pinned import PinnedFiles, unpin
from service.engine.rpc import Connection, Message, dump_sequences, load_logits
from service.engine.supervisor import run_in_background
from service.engine.types import NO_NEW_WORK, EngineProfile, EngineResult, QueueLoad
from service.settings import Settings
from service.workers.runtime import socket_path
from tinyrm.bundle import Bundle
from tinyrm.encoding import Encoding
from tinyrm.errors import NOT_ACCEPTED, NOT_FINISHED, EngineRestarting, EngineUnavailable, Overloaded, ShuttingDown
from tinyrm.manifest import TOKENIZER_FILE, Manifest

# The owner of the queue reports its load twenty times a second; a report older than this is ignored.
SILENCE_S = 1.5


class QueueClient(Backend):
    """Sends sequences to the queue and waits for their logits. Its view of the load is up to 50 ms old.

    on_loss: called when the queue's process has disconnected.
    on_move: called with the path of the queue that serves the bundle's folder from now on.
    """

    def __init__(
        self, settings: Settings, on_loss: Callable[[], None], on_move: Callable[[Path], Coroutine[None, None, None]]
    ) -> None:
        self.profile: EngineProfile
        self.bundle: Bundle
        self._max_wait_s = settings.max_wait_s
        self._on_queue_loss, self._on_move = on_loss, on_move
        self._moving: asyncio.Task[None] | None = None
        self._load = QueueLoad(0, 0, 0.0, 0, is_up=False, unhealthy_reason="not connected")
        self._reported_s = 0.0
        self._is_closing = self._has_moved = False
        self._connection = Connection(handle=reply_to_ping, on_notice=self._on_notice, on_loss=self._on_loss)

    @property
    def engine_pid(self) -> None:
        return None

    async def connect(self, path: Path, folder: Path) -> None:
        """Connect to a queue, and take the bundle that it serves, without its graphs: folders may hold another one.

        path: Unix socket of the queue.
        folder: of the bundle.

        Raises OSError if no process listens there.
        """
        link = socket.socket(socket.AF_UNIX)
        with socket_path(path) as short:
            link.connect(short)
        await asyncio.get_running_loop().create_unix_connection(lambda: self._connection, sock=link)
        head, tokenizer = await self._connection.call({"connect": os.getpid()})
        self.profile = EngineProfile.parse(head["profile"])
        self.bundle = Bundle(
            folder, Manifest.model_validate_json(head["manifest"]), PinnedFiles.of(TOKENIZER_FILE, tokenizer)
        )
        if self.profile.identity != self.bundle.manifest.identity:
            self._close("the queue serves another bundle")
            raise EngineUnavailable(
                f"the engine runs {self.profile.identity}, and the queue serves {self.bundle.manifest.identity}"
            )
        self._on_notice({"load": head["load"]})

    def load(self) -> QueueLoad:
        if self._is_closing:
            return replace(self._load, unhealthy_reason=NO_NEW_WORK)
        if self._is_outdated:
            return replace(self._load, unhealthy_reason="the owner of the queue does not report")
        return self._load

    def refuse_if_busy(self, timeout_s: float | None = None, fairness_key: Hashable = None) -> None:  # noqa: ARG002
        """Refuse what the queue would refuse from every client; it refuses a client that has too much in it itself."""
        self.refuse_if_closed()
        if self._is_outdated:
            return  # the queue decides
        if not self._load.is_up:
            raise EngineRestarting("the engine failed and is being restarted; try again")
        max_s = min(self._max_wait_s, math.inf if timeout_s is None else timeout_s)
        if self._load.is_full:
            raise Overloaded(f"{self._load.queue_tokens} tokens are waiting; retry after Retry-After")
        if self._load.next_wait_s > max_s:
            raise Overloaded(
                f"new work would wait {self._load.next_wait_s:.1f} s, more than {max_s:g} s; retry after Retry-After"
            )

    async def submit(
        self,
        sequences: tuple[Encoding, ...],
        *,
        fairness_key: Hashable,
        timeout_s: float | None,
        wait_for_room: bool,
    ) -> EngineResult:
        self.refuse_if_closed()  # the drain may have begun during the encoding
        lengths, ids = dump_sequences(sequences)
        head = {
            "lengths": lengths,
            # The name of a client is the same in every worker; other keys are unique to this one.
            "fairness_key": fairness_key if isinstance(fairness_key, str) else id(fairness_key),
            "timeout_s": timeout_s,
            "wait_for_room": wait_for_room,
        }
        reply, logits = await self._connection.call(head, ids)
        return EngineResult(load_logits(logits, len(sequences)), reply["queue_s"], reply["run_s"])

    def retry_after_s(self) -> int:
        # A long list may need far longer, but it holds up nobody else's work.
        return max(1, math.ceil(min(self._load.wait_s, self._max_wait_s)))

    async def drain(self, timeout_s: float) -> None:
        self._is_closing = True
        await self._connection.finish_calls(timeout_s)
        self._close(NOT_FINISHED)
        unpin(self.bundle)

    @property
    def _is_outdated(self) -> bool:
        return time.monotonic() - self._reported_s > SILENCE_S

    def refuse_if_closed(self) -> None:
        if self._is_closing:
            raise ShuttingDown(NOT_ACCEPTED)

    def _close(self, reason: str) -> None:
        self._is_closing = True
        self._connection.fail(ShuttingDown(reason))

    def _on_loss(self) -> None:
        was_closing = self._is_closing
        self._close(NOT_FINISHED)
        if not (was_closing or self._has_moved):
            self._on_queue_loss()

    def _on_notice(self, head: dict[str, Any]) -> None:
        if "load" in head:
            self._load, self._reported_s = QueueLoad(**head["load"]), time.monotonic()
        elif "moved" in head:
            self._has_moved = True
            self._moving = run_in_background(self._on_move(Path(head["moved"])), "move to another queue")


def reply_to_ping(*_: object) -> Message:
    return {}, b""
