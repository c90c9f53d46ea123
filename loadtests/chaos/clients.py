"""Clients that leave in the middle of a request, or never complete one."""

import asyncio
import random
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

from loadtests.chaos.case import CLIENT_TIMEOUT_S, OVERLOADED, Context, Outcome, expect_well
from loadtests.traffic import background
from loadtests.wire import Client

SHARE_OF_CAPACITY = 0.5
AT_ONCE = 50


async def vanishing(context: Context) -> Outcome:
    """Masses of clients send some or all of a request and leave, half of them with a reset; others stay."""
    outcome, extent = Outcome(), context.extent
    requests = context.payloads.singles()
    async with context.service() as service:
        client = Client(service.port, timeout_s=CLIENT_TIMEOUT_S)
        outcome.rss_before_bytes = service.rss_bytes()
        async with background(client, requests, SHARE_OF_CAPACITY * context.capacity_per_s) as outcome.tally:
            await asyncio.gather(leave_in_masses(service.port, requests, extent.clients), asyncio.sleep(extent.load_s))
        outcome.rss_after_bytes = service.rss_bytes()
        await expect_well(service, context.payloads, outcome)
    outcome.notes["vanished"] = f"{extent.clients} clients"
    outcome.expect_kinds(OVERLOADED)
    return outcome


async def leave_in_masses(port: int, requests: Sequence[bytes], clients: int) -> None:
    dice, gate = random.Random(7), asyncio.Semaphore(AT_ONCE)

    async def visit() -> None:
        content = dice.choice(requests)
        async with gate:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                if dice.random() < 0.5:  # closing resets the connection; otherwise it ends as HTTP clients end it
                    connection = writer.get_extra_info("socket")
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.write(content[: dice.choice([1, 30, len(content) // 2, len(content), len(content)])])
                await asyncio.sleep(dice.choice([0, 0.005, 0.05]))
                writer.close()
                await writer.wait_closed()

    await asyncio.gather(*(visit() for _ in range(clients)))


async def half_sent(context: Context) -> Outcome:
    """Half of the clients stop in the headers, half in the body; all keep their connections while others are served."""
    outcome, extent = Outcome(), context.extent
    requests = context.payloads.singles()
    head = requests[0].index(b"\r\n\r\n")
    async with context.service() as service:
        client = Client(service.port, timeout_s=CLIENT_TIMEOUT_S)
        outcome.rss_before_bytes = service.rss_bytes()
        held = []
        for number in range(extent.clients):
            reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
            writer.write(requests[0][: head // 2 if number % 2 else head + 24])
            await writer.drain()
            held.append((reader, writer))
        async with background(client, requests, SHARE_OF_CAPACITY * context.capacity_per_s) as outcome.tally:
            await asyncio.sleep(extent.load_s)
        outcome.rss_after_bytes = service.rss_bytes()
        closed = sum(reader.at_eof() for reader, _ in held)
        for _, writer in held:
            writer.close()
        await expect_well(service, context.payloads, outcome)
    outcome.notes["held open"] = f"{extent.clients} connections, {closed} of them closed by the service"
    outcome.expect_kinds(OVERLOADED)
    return outcome
