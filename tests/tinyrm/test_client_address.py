"""Test what the environment and the address make of a client: proxies, certificates, and what messages name."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import free_port
from tests.support.scripted_server import ScriptedServer, answer, compared, scripted
from tinyrm import AsyncClient, Client
from tinyrm.cli import main
from tinyrm.client.address import Address
from tinyrm.errors import CallRefused, CallTimedOut, InvalidInput, ServiceFailed, ServiceUnreachable

TEXTS = ("What is 2 + 2?", "4", "5")
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUEST_METHOD")
REMOTE = "http://service.example:8000"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def proxy() -> Iterator[ScriptedServer]:
    with scripted(compared()) as server:
        yield server


def has_proxy(url: str) -> bool:
    return Address.of(url, None, 1).options["proxy"] is not None


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_of_the_environment_is_used(name: str, proxy: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, proxy.url.removeprefix("http://") if name == "ALL_PROXY" else proxy.url)
    with Client(REMOTE) as client:
        assert client.compare(*TEXTS).preferred == "a"
    assert proxy.received[0].headers["Host"] == "service.example:8000"


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("url", ["socks://127.0.0.1:9", "socks5://127.0.0.1:9", "ftp://x", "http://[::1", "http://h:x"])
def test_a_proxy_that_cannot_be_used_is_named(name: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, url.replace("://", "://user:secret@"))
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidInput, match=f"{name} names a proxy .* NO_PROXY=service.example") as caught:
            kind("https://service.example" if "https" in name.lower() else REMOTE)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"])
@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "socks://127.0.0.1:9"])
def test_this_machine_is_called_without_a_proxy(host: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, url)
    assert not has_proxy(f"http://{host}:8000")
    Client(f"http://{host}:8000")


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
@pytest.mark.parametrize(
    ("exceptions", "host", "is_direct"),
    [
        ("*", "service.example", True),
        ("other, service.example", "service.example", True),
        ("example", "service.example", True),
        (".example", "service.example", True),
        ("service.example:8000", "service.example", True),
        ("service.example:8001", "service.example", False),
        ("ample", "service.example", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3:8000", "10.1.2.3", True),
        ("fe80::/10", "[fe80::1]", True),
        ("[fd00::1]", "[fd00::1]", True),
        ("fd00::1", "[fd00::1]", True),
        ("[fd00::1]:8000", "[fd00::1]", True),
        ("[::1],fe80::/10,%,[", "service.example", False),
        ("*", "10.1.2.3", True),
    ],
)
def test_no_proxy(name: str, exceptions: str, host: str, is_direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv(name, exceptions)
    assert has_proxy(f"http://{host}:8000") is not is_direct
    Client(f"http://{host}:8000")


@pytest.mark.parametrize(("scheme", "port"), [("http", 80), ("https", 443)])
def test_no_proxy_may_name_the_usual_port(scheme: str, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", f"service.example:{port}")
    assert not has_proxy(f"{scheme}://service.example")
    assert has_proxy(f"{scheme}://service.example:8000")


def test_a_failure_names_the_address_and_the_proxy_between(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("HTTP_PROXY", f"http://user:secret@127.0.0.1:{port}")
    with Client(REMOTE, max_retries=0) as client, pytest.raises(ServiceUnreachable) as caught:
        client.compare(*TEXTS)
    assert f"at {REMOTE} through the proxy http://127.0.0.1:{port} of HTTP_PROXY" in str(caught.value)
    assert "NO_PROXY=service.example" in str(caught.value)


def test_a_refusal_of_the_proxy_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(answer(403, b"not allowed")) as server:
        monkeypatch.setenv("http_proxy", server.url)
        with (
            Client(REMOTE) as client,
            pytest.raises(CallRefused, match=f"through the proxy {server.url} of http_proxy"),
        ):
            client.compare(*TEXTS)


def test_a_closed_port_is_named_without_the_password() -> None:
    port = free_port()
    with (
        Client(f"http://me:secret@127.0.0.1:{port}/", max_retries=0) as client,
        pytest.raises(ServiceUnreachable, match=f"at http://127.0.0.1:{port} "),
    ):
        client.models()


def test_a_host_that_accepts_no_connection_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyrm.client.transport.CONNECT_TIMEOUT_S", 0.05)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        with (
            Client(url, timeout_s=2, max_retries=0) as client,
            pytest.raises((ServiceUnreachable, CallTimedOut), match=url),
        ):
            client.models()
        for filler in fillers:
            filler.close()


def test_a_redirect_names_where_to() -> None:
    with (
        scripted(answer(308, b"", Location="https://elsewhere.example/v1/models")) as server,
        Client(server.url) as client,
        pytest.raises(ServiceFailed, match=r"redirect to https://elsewhere\.example/v1/models"),
    ):
        client.models()


@pytest.mark.parametrize("name", ["SSL_CERT_FILE"])
def test_certificates_that_cannot_be_read_are_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (None, "not a certificate"):
        file = tmp_path / "certificates.pem"
        if content:
            file.write_text(content)
        monkeypatch.setenv(name, str(file))
        Client(REMOTE)  # needs none
        with pytest.raises(InvalidInput, match=name):
            Client("https://service.example")


@pytest.mark.parametrize("host", ["a" * 64, "a..b", "\ud800", "xn--zzzzzz-", "\u2603"])
def test_a_name_that_cannot_be_looked_up_is_refused(host: str) -> None:
    with pytest.raises(InvalidInput, match="base_url"):
        Client(f"http://{host}:8000")


@pytest.mark.parametrize("options", [{"timeout_s": 0}, {"timeout_s": float("inf")}, {"timeout_s": float("nan")}])
def test_a_time_limit_is_a_number(options: dict[str, float]) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidInput, match="timeout_s"):
            kind(**options)


def test_the_command_prints_one_line_for_a_proxy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9")
    assert main(["models", "--url", REMOTE]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tinyrm: ALL_PROXY names a proxy that cannot be used")
