"""A service that breaks one promise. Run as `stand_in_service.py BEHAVIOUR`; it listens on TINYRM_PORT."""

import asyncio
import itertools
import os
import signal
import sys

import psutil

ANSWER, BUSY = b'{"preferred": "a"}', b'{"error": {"type": "overloaded", "message": "too much"}}'
FAILED = b'{"error": {"type": "internal_error", "message": "a bug"}}'


def reply(status: str, body: bytes, *headers: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""])
    return head.encode() + body


class StandIn:
    def __init__(self, behaviour: str) -> None:
        self.behaviour = behaviour
        self.numbers = itertools.count(1)
        self.ready = True
        self.engine: psutil.Popen | None = None

    async def keep_engine(self) -> None:
        """Keep a child that does nothing. If it ends or stops it is replaced; meanwhile the service is not ready."""
        while True:
            if self.engine is None or self.engine.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                self.ready = self.engine is None
                if self.engine is not None:
                    self.engine.kill()
                    self.engine.wait()
                    await asyncio.sleep(0.2)
                self.engine = psutil.Popen(
                    [sys.executable, "-c", "import time; time.sleep(99)", "service.engine.worker"]
                )
                self.ready = True
            await asyncio.sleep(0.02)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self.one(reader, writer):
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        writer.close()

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request. Return whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = next((int(line.split(":")[1]) for line in head.splitlines() if line.startswith("content-length:")), 0)
        await reader.readexactly(length)
        if "/readyz" in head and not self.ready:
            writer.write(reply("503 Service Unavailable", BUSY, "Retry-After: 1"))
            return True
        if "/v1/compare" not in head:
            writer.write(reply("200 OK", b"tinyrm_queue_items 0\n"))
            return True
        return await self.compared(writer)

    async def compared(self, writer: asyncio.StreamWriter) -> bool:
        strikes = next(self.numbers) % 3 == 0
        if strikes and self.behaviour == "loses":
            return False
        if strikes and self.behaviour == "hangs":
            await asyncio.sleep(60)
        if strikes and self.behaviour == "is-rude":
            writer.write(reply("503 Service Unavailable", BUSY))
        elif strikes and self.behaviour == "fails":
            writer.write(reply("500 Internal Server Error", FAILED))
        elif strikes and self.behaviour == "is-polite":
            writer.write(reply("429 Too Many Requests", BUSY, "Retry-After: 1"))
        else:
            writer.write(reply("200 OK", ANSWER, "Server-Timing: encode;dur=1.0, run;dur=2.5"))
        return True


async def main(behaviour: str) -> None:
    if behaviour == "leaves":
        sys.exit('{"event": "cannot start", "reason": "unknown engine", "level": "error"}')
    if behaviour == "ignores-sigterm":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stand_in = StandIn(behaviour)
    keeper = asyncio.create_task(stand_in.keep_engine()) if behaviour == "keeps-engine" else None
    if behaviour == "forgets-engine":
        psutil.Popen([sys.executable, "-c", "import time; time.sleep(99)", "service.engine.worker"])
    server = await asyncio.start_server(stand_in.serve, "127.0.0.1", int(os.environ["TINYRM_PORT"]))
    await asyncio.gather(server.serve_forever(), *([keeper] if keeper else []))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
