"""Bytes that no document allows, as they travel."""

from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.chaos.case import CLIENT_TIMEOUT_S, Context, Outcome, expect_well
from loadtests.payloads import BATCH, COMPARE
from loadtests.wire import Client, NoAnswer, Unconnected, request

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Hostile:
    """statuses: those that the reply may have; 0 is a connection that ends without one, as for what is not HTTP."""

    name: str
    content: bytes
    statuses: tuple[int, ...]


def body(name: str, content: bytes, *statuses: int, path: str = COMPARE) -> Hostile:
    return Hostile(name, request(path, content), statuses)


def text(value: bytes) -> bytes:
    return b'{"prompt": "q", "response_a": "x", "response_b": ' + value + b"}"


def head(*lines: str) -> bytes:
    return "\r\n".join([f"POST {COMPARE} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


CORPUS: Sequence[Hostile] = (
    body("nothing", b"", 422),
    body("NUL bytes", bytes(1000), 400),
    body("not UTF-8", text(b'"\xff\xfe"'), 400),
    body("overlong UTF-8", text(b'"\xc0\xaf"'), 400),
    body("UTF-16", '{"prompt": "q"}'.encode("utf-16"), 400, 422),
    body("byte order mark", b"\xef\xbb\xbf" + text(b'"y"'), 200, 400),
    body("lone surrogate", text(rb'"\ud800"'), 422),
    body("NaN", text(b"NaN"), 422),
    body("number beyond floats", text(b"1e999999"), 422),
    body("integer of 100,000 digits", text(b"9" * 100_000), 400, 422),
    body("a million brackets", b"[" * MIB, 400),
    body("a million nested objects", b'{"a":' * MIB, 400),
    body("a key a hundred thousand times", b"{" + b'"prompt": "q",' * 100_000 + b'"response_a": "x"}', 422),
    body("a hundred thousand keys", b"{" + b",".join(b'"%d": 1' % n for n in range(100_000)) + b"}", 422),
    body("a body of 9 MiB", text(b'"' + b"x" * (9 * MIB) + b'"'), 413),
    body("a million items", b'{"items": [' + b"1," * MIB + b"1]}", 400, path=BATCH),
    body("a thousand empty items", b'{"items": [' + b"{}," * 1000 + b"{}]}", 200, path=BATCH),
    body("a response of 5 MiB", text(b'"' + b"word " * MIB + b'"'), 200),
    body("combining marks", text(b'"' + "e\u0301\u0300".encode() * 100_000 + b'"'), 200),
    body("special tokens", text(b'"' + b"[MASK][SEP][CLS][PAD]" * 1000 + b'"'), 200),
    body("path that climbs", text(b'"y"'), 404, path="/v1/../../etc/passwd"),
    body("path of 60 kB", b"{}", 404, 414, 431, 400, 0, path="/" + "a" * 60_000),
    Hostile("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50), (400, 0)),
    Hostile("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 404, 405, 505, 0)),
    Hostile("HTTP/9", b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n", (200, 400, 505, 0)),
    Hostile("no host", b"GET /healthz HTTP/1.1\r\n\r\n", (200, 400)),
    Hostile("header without a colon", head("Content-Length 2") + b"{}", (400, 0)),
    Hostile("header with NUL", head("X: a\0b", "Content-Length: 2") + b"{}", (400, 0, 422)),
    Hostile("negative length", head("Content-Length: -1") + b"{}", (400, 0)),
    Hostile("length that is not a number", head("Content-Length: two") + b"{}", (400, 0)),
    Hostile("two lengths", head("Content-Length: 2", "Content-Length: 3") + b"{}}", (400, 0)),
    Hostile("length and chunks", head("Content-Length: 2", "Transfer-Encoding: chunked") + b"0\r\n\r\n", (400, 422, 0)),
    Hostile("chunk size that is not a number", head("Transfer-Encoding: chunked") + b"zz\r\n{}\r\n0\r\n\r\n", (400, 0)),
    Hostile("chunk beyond 64 bits", head("Transfer-Encoding: chunked") + b"f" * 17 + b"\r\n", (400, 413, 0)),
    Hostile("a megabyte of headers", head(*(f"X-{n}: {'y' * 1000}" for n in range(1000))), (400, 413, 422, 431, 0)),
    Hostile("unknown content coding", head("Content-Encoding: zip", "Content-Length: 2") + b"{}", (400, 415, 422)),
)


async def hostile(context: Context) -> Outcome:
    """Each gets a fitting status, or its connection ends if it is not HTTP; never a 5xx, never silence."""
    outcome = Outcome()
    async with context.service() as service:
        outcome.rss_before_bytes = service.rss_bytes()
        for case in CORPUS:
            status = await status_for(service.port, case)
            outcome.tally.sent += 1
            if status in case.statuses:
                outcome.tally.answered += 1
            else:
                outcome.tally.failed += 1
                outcome.broken.append(f"{case.name}: expected one of {case.statuses}, was {status}")
        outcome.rss_after_bytes = service.rss_bytes()
        await expect_well(service, context.payloads, outcome)
    return outcome


async def status_for(port: int, case: Hostile) -> int:
    """Return the status; 0 if the connection ended, -1 if nothing happened for too long."""
    client = Client(port, keep_alive=False, timeout_s=CLIENT_TIMEOUT_S)
    try:
        return (await client.send(case.content)).status
    except NoAnswer as error:
        return -1 if str(error).startswith("no answer within") else 0
    except Unconnected:
        return 0
