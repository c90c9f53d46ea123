"""The harness's side of the protocol: one contender, one process, one JSON line each way."""

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast


class WorkerFailed(Exception):
    """The worker could not start, died, sent something that is not JSON, or took too long. The message states which."""


class Worker:
    """A started process. What it and its libraries print to stderr goes to `log`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._lines: queue.Queue[str | None] = queue.Queue()
        try:
            with log.open("w", encoding="utf-8") as stderr:
                self._popen = subprocess.Popen(  # noqa: S603  # the commands are those of contenders.py
                    command,
                    env=os.environ | dict(environment),
                    text=True,
                    bufsize=1,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    # So that servers it started end with it. A session would have its own share of the processor.
                    process_group=0,
                )
        except OSError as error:
            raise WorkerFailed(f"cannot be started: {error.strerror}") from error
        # Both are pipes, which the types of Popen do not show.
        self._stdin = cast("IO[str]", self._popen.stdin)
        threading.Thread(target=self._read, args=(self._popen.stdout,), daemon=True).start()

    def wait_ready(self, timeout_s: float) -> str:
        """Return the worker's description of itself. Raises WorkerFailed with its reason if it cannot run."""
        message = self._next(timeout_s)
        if not message.get("ready"):
            raise WorkerFailed(str(message.get("reason", "the first line states neither readiness nor a reason")))
        return str(message.get("detail", ""))

    def send(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Return the reply to one request. Raises WorkerFailed if there is none, or if it is an error."""
        try:
            self._stdin.write(json.dumps(request) + "\n")
            self._stdin.flush()
        except OSError as error:
            raise WorkerFailed(self._ending()) from error
        reply = self._next(timeout_s)
        if "error" in reply:
            raise WorkerFailed(str(reply["error"]))
        return reply

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def close(self, timeout_s: float = 15) -> None:
        """Close its input, so that it exits by itself, and kill what is left of its group after `timeout_s`."""
        with suppress(OSError):
            self._stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout_s)
        self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()

    def _read(self, stdout: IO[str]) -> None:
        with stdout:
            for line in stdout:
                if line.startswith("{"):  # libraries print to stdout as well
                    self._lines.put(line)
        self._lines.put(None)

    def _next(self, timeout_s: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            self._kill()
            raise WorkerFailed(f"no answer within {timeout_s:.0f} s") from None
        if line is None:
            raise WorkerFailed(self._ending())
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            raise WorkerFailed(f"the reply is not JSON: {line[:80]!r}") from None
        return message

    def _ending(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(5)
        return f"its process ended with {self._popen.returncode}; its log states why"
