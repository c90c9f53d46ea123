"""More than the queue may hold, and deadlines that pass in it."""

import json

from loadtests.arrivals import open_loop
from loadtests.chaos.case import OVERLOADED, PATIENCE_S, Context, Outcome, Skipped, is_well
from loadtests.payloads import COMPARE
from loadtests.wire import Client, request

TIMES_CAPACITY = 5
DEADLINE_MS = 250
# Two comparisons of full length, or a dozen usual ones.
FEW_TOKENS = 4096


async def full_429(context: Context) -> Outcome:
    """A small queue, refusing with 429."""
    return await full(context, 429)


async def full_503(context: Context) -> Outcome:
    """The same, refusing with 503, for callers to whom every 4xx is fatal."""
    return await full(context, 503)


async def full(context: Context, status: int) -> Outcome:
    """Several times the capacity: the rest is refused at once, and told when to come back."""
    settings: dict[str, object] = {"max_queue_tokens": int(str(context.settings.get("max_batch_tokens", FEW_TOKENS)))}
    if "overload_status" in context.known:
        settings["overload_status"] = status
    elif status != 429:
        raise Skipped("this service has no setting TINYRM_OVERLOAD_STATUS")
    outcome = Outcome()
    async with context.service(**settings) as service:
        outcome.rss_before_bytes = service.rss_bytes()
        await offer(context, service.port, context.payloads.singles(), outcome)
        outcome.rss_after_bytes = service.rss_bytes()
        await is_well(service, context.payloads, outcome)
    outcome.expect("something was refused", outcome.tally.refused > 0)
    outcome.expect("something was answered", outcome.tally.answered > 1)
    outcome.expect_kinds([f"{status} overloaded"])
    outcome.notes["slowest refusal"] = f"{outcome.tally.slowest_error_s:.2f} s"
    return outcome


async def deadlines(context: Context) -> Outcome:
    """Several times the capacity, from callers who say how long they wait."""
    outcome = Outcome()
    async with context.service() as service:
        if not await knows_deadlines(service.port):
            raise Skipped("this service documents no 504 of /v1/compare: it knows no X-Request-Timeout-Ms")
        outcome.rss_before_bytes = service.rss_bytes()
        requests = context.payloads.singles({"X-Request-Timeout-Ms": str(DEADLINE_MS)})
        await offer(context, service.port, requests, outcome)
        outcome.rss_after_bytes = service.rss_bytes()
        await is_well(service, context.payloads, outcome)
    outcome.expect_kinds(["504 deadline_exceeded", *OVERLOADED])
    outcome.expect("something was answered", outcome.tally.answered > 1)
    outcome.expect("not everything was answered in time", outcome.tally.refused > 0)
    outcome.notes["deadline"] = f"{DEADLINE_MS} ms; slowest refusal {outcome.tally.slowest_error_s:.2f} s"
    return outcome


async def offer(context: Context, port: int, requests: list[bytes], outcome: Outcome) -> None:
    client = Client(port, timeout_s=PATIENCE_S)
    rate = TIMES_CAPACITY * context.capacity_per_s
    await open_loop(client, requests, rate, outcome.tally, seconds=context.extent.load_s)
    client.close()


async def knows_deadlines(port: int) -> bool:
    reply = await Client(port, keep_alive=False).ask(request("/openapi.json", method="GET"))
    return "504" in json.loads(reply.body)["paths"][COMPARE]["post"]["responses"]
