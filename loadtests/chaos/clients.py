"""Clients that leave in the middle, or never come to the point."""

import asyncio
import random
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

from loadtests.arrivals import background
from loadtests.chaos.case import OVERLOADED, PATIENCE_S, Context, Outcome, is_well
from loadtests.wire import Client

SHARE_OF_CAPACITY = 0.5
AT_ONCE = 50


async def vanishing(context: Context) -> Outcome:
    """Clients in masses send some or all of a request and leave, half of them with a reset, beside others that stay."""
    outcome, extent = Outcome(), context.extent
    requests = context.payloads.singles()
    async with context.service() as service:
        client = Client(service.port, timeout_s=PATIENCE_S)
        outcome.rss_before_bytes = service.rss_bytes()
        async with background(client, requests, SHARE_OF_CAPACITY * context.capacity_per_s) as outcome.tally:
            await asyncio.gather(leave_in_masses(service.port, requests, extent.clients), asyncio.sleep(extent.load_s))
        outcome.rss_after_bytes = service.rss_bytes()
        await is_well(service, context.payloads, outcome)
    outcome.notes["vanished"] = f"{extent.clients} clients"
    outcome.expect_kinds(OVERLOADED)
    return outcome


async def leave_in_masses(port: int, requests: Sequence[bytes], clients: int) -> None:
    dice, gate = random.Random(7), asyncio.Semaphore(AT_ONCE)

    async def visit() -> None:
        async with gate:
            await leave_somewhere(port, dice.choice(requests), dice)

    await asyncio.gather(*(visit() for _ in range(clients)))


async def leave_somewhere(port: int, content: bytes, dice: random.Random) -> None:
    """Send a part of a request or all of it, and leave; with a reset, or with an end as HTTP clients do."""
    with suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        if dice.random() < 0.5:
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.write(content[: dice.choice([1, 30, len(content) // 2, len(content), len(content)])])
        await asyncio.sleep(dice.choice([0, 0.005, 0.05]))
        writer.close()
        await writer.wait_closed()


async def half_sent(context: Context) -> Outcome:
    """Half of them stop in the headers, half in the body; all keep their connections, beside others that are served."""
    outcome, extent = Outcome(), context.extent
    requests = context.payloads.singles()
    async with context.service() as service:
        client = Client(service.port, timeout_s=PATIENCE_S)
        outcome.rss_before_bytes = service.rss_bytes()
        head = requests[0].index(b"\r\n\r\n")
        held = [
            await hold(service.port, requests[0][: head // 2 if number % 2 else head + 24])
            for number in range(extent.clients)
        ]
        async with background(client, requests, SHARE_OF_CAPACITY * context.capacity_per_s) as outcome.tally:
            await asyncio.sleep(extent.load_s)
        outcome.rss_after_bytes = service.rss_bytes()
        closed = sum(reader.at_eof() for reader, _ in held)
        for _, writer in held:
            writer.close()
        await is_well(service, context.payloads, outcome)
    outcome.notes["held open"] = f"{extent.clients} connections, {closed} of them closed by the service"
    outcome.expect_kinds(OVERLOADED)
    return outcome


async def hold(port: int, content: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(content)
    await writer.drain()
    return reader, writer
