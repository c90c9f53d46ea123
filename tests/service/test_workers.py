"""Test what the owner of the workers does when they end."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from service.process import CANNOT_START, FAILED, StopSignals
from service.settings import Settings
from service.workers import supervisor
from service.workers.supervisor import QueueServers, Workers


class EndedChild:
    pid = 4711

    def __init__(self, code: int) -> None:
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.ended.set_result(code)


@pytest.mark.parametrize(
    ("codes", "connects", "exit_code"),
    [
        ([CANNOT_START], False, CANNOT_START),  # none has ever started
        ([0], False, None),  # killed during its start
        ([CANNOT_START, CANNOT_START], True, FAILED),  # for longer than the owner waits
        ([CANNOT_START], True, None),
        ([CANNOT_START, -9, CANNOT_START], True, None),
    ],
)
def test_the_service_ends_when_no_worker_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: list[int], connects: bool, exit_code: int | None
) -> None:
    monkeypatch.setattr(supervisor, "GIVE_UP_S", 0.005)

    async def scenario() -> None:
        signals = StopSignals()
        queues = QueueServers(Settings(), tmp_path)
        with socket.socket() as listener:
            workers: Any = Workers(Settings(), queues, listener, signals)

            def end(code: int) -> None:
                child = EndedChild(code)
                workers._running[child] = "worker-1"
                workers._on_end(child)

            if connects:
                queues.connected.add(EndedChild.pid)
                end(0)
            for code in codes:
                end(code)
                await asyncio.sleep(0.01)
        assert (signals.exit_code if signals.stopped.is_set() else None) == exit_code

    asyncio.run(scenario())
