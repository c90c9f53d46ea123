"""A service that keeps no promise. Run as `stand_in_service.py BEHAVIOUR`; TINYRM_PORT is where it listens."""

import asyncio
import itertools
import os
import signal
import sys

ANSWER, BUSY = b'{"preferred": "a"}', b'{"error": {"type": "overloaded", "message": "too much"}}'
FAILED = b'{"error": {"type": "internal_error", "message": "a bug"}}'


def reply(status: str, body: bytes, *headers: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""])
    return head.encode() + body


class StandIn:
    def __init__(self, behaviour: str) -> None:
        self.behaviour = behaviour
        self.numbers = itertools.count(1)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self.one(reader, writer):
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        writer.close()

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection goes on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = next((int(line.split(":")[1]) for line in head.splitlines() if line.startswith("content-length:")), 0)
        await reader.readexactly(length)
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
    server = await asyncio.start_server(StandIn(behaviour).serve, "127.0.0.1", int(os.environ["TINYRM_PORT"]))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
