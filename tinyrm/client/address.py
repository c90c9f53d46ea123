"""The address of a service, and how httpx reaches it: keys, certificates, and the proxy of the environment."""

import ipaddress
import os
import ssl
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

import tinyrm
from tinyrm.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Address:
    """Where calls go.

    shown: the address, with the proxy if there is one, for messages. Passwords are left out.
    advice: what to try if nothing responds there.
    options: arguments of httpx.Client and httpx.AsyncClient.
    """

    shown: str
    advice: str
    options: dict[str, Any]

    @classmethod
    def of(cls, base_url: str, api_key: str | None, max_connections: int) -> "Address":
        """Raise InvalidInput for an address, a key or an environment that cannot be used."""
        parts = _parse(base_url)
        headers = {"User-Agent": f"tinyrm/{tinyrm.__version__}", "Content-Type": "application/json"}
        if api_key is not None:
            is_word = isinstance(api_key, str) and api_key.isascii() and api_key.isprintable() and " " not in api_key
            if not (api_key and is_word):
                # The message does not repeat the key.
                raise InvalidInput("api_key: must be one word of ASCII characters, as `tinyrm keys new` printed it")
            headers["Authorization"] = f"Bearer {api_key}"
        shown, advice, proxy = _without_password(base_url), "is it running at that address?", None
        if found := _proxy_for(parts):
            variable, url = found
            proxy = _checked_proxy(variable, url, str(parts.hostname))
            shown += f" through the proxy {_without_password(url)} of {variable}"
            advice = f"is it running there, and is the proxy needed? NO_PROXY={parts.hostname} leaves it out"
        # All connections stay open for the next calls.
        limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)
        return cls(
            shown,
            advice,
            {
                "base_url": base_url,
                "headers": headers,
                "limits": limits,
                "proxy": proxy,
                "trust_env": False,  # its reading of the environment is replaced by ours
                "verify": _certificates() if parts.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            },
        )


def _parse(base_url: str) -> SplitResult:
    with suppress(ValueError, httpx.InvalidURL, TypeError, AttributeError):
        host = httpx.URL(base_url).host  # stricter than urlsplit, which drops a newline at the end
        parts = urlsplit(base_url)
        if host and parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0):
            parts.hostname.encode("idna")  # as the resolver of the standard library does
            return parts
    raise InvalidInput(f"base_url: {base_url!r} is not an address; write http://host:port")


def _proxy_for(parts: SplitResult) -> tuple[str, str] | None:
    """Return the variable and the address of the proxy for this address; None for a direct connection."""
    host, proxies = str(parts.hostname), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if not proxy or _is_direct(host, port, proxies.get("no", "")):
        return None
    names = (f"{parts.scheme}_proxy", "all_proxy")
    variable = next((name for name in os.environ if name.lower() in names and os.environ[name] == proxy), "the system")
    return variable, proxy if "://" in proxy else f"http://{proxy}"


def _is_direct(host: str, port: int, no_proxy: str) -> bool:
    """Return whether no proxy is used: this machine, and what NO_PROXY names: hosts, domains, addresses, networks."""
    exceptions = [name.strip() for name in no_proxy.split(",")]
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        is_local = host == "localhost" or host.endswith(".localhost")
        return is_local or "*" in exceptions or bool(proxy_bypass(f"{host}:{port}"))
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_loopback or ip.is_unspecified or "*" in exceptions or proxy_bypass(host):
        return True
    for name in exceptions:
        with suppress(ValueError):
            # With or without brackets, a port, or the length of a network's prefix.
            bare = name.removesuffix(f":{port}") if "]" in name or name.count(":") == 1 else name
            if ip in ipaddress.ip_network(bare.replace("[", "").replace("]", ""), strict=False):
                return True
    return False


def _checked_proxy(variable: str, url: str, host: str) -> httpx.Proxy:
    """Return a proxy that httpx can use. Raises InvalidInput, which names the variable and not its password."""
    try:
        proxy = httpx.Proxy(url)
        httpx.HTTPTransport(proxy=proxy, trust_env=False).close()  # raises for socks5:// without the package socksio
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        scheme = url.partition("://")[0]
        raise InvalidInput(
            f"{variable} names a proxy that cannot be used ({scheme}://): unset it, set it to http://host:port, or set "
            f"NO_PROXY={host}"
        ) from error
    return proxy


def _certificates() -> ssl.SSLContext:
    """Return the certificates of SSL_CERT_FILE or SSL_CERT_DIR, or those that come with httpx."""
    try:
        return httpx.create_ssl_context(trust_env=True)
    except OSError as error:
        raise InvalidInput(f"SSL_CERT_FILE: {os.environ.get('SSL_CERT_FILE')} cannot be used: {error}") from error


def _without_password(url: str) -> str:
    try:
        return str(httpx.URL(url).copy_with(username=None, password=None)).rstrip("/")
    except (httpx.InvalidURL, ValueError):
        return url.rpartition("@")[2]
