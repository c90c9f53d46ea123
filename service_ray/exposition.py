"""Metrics of many replicas on one page: the same names, each series with the replica it is from.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import re
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, generate_latest

FAMILY = re.compile(r"^# HELP (\S+) ")
SERIES = re.compile(r"^([A-Za-z_:][\w:]*)(\{?)(.*)$")


def labelled(page: str, replica: str) -> str:
    """The page with `replica` as the first label of every series. The name must need no escaping."""
    return "".join(f"{_labelled(line, replica)}\n" for line in page.splitlines())


def _labelled(line: str, replica: str) -> str:
    found = None if line.startswith("#") else SERIES.match(line)
    if found is None:
        return line
    name, brace, rest = found.groups()
    return f'{name}{{replica="{replica}"{f",{rest}" if brace else f"}}{rest}"}'


def merged(pages: Iterable[str]) -> str:
    """One page: all series of a family stand together, under its HELP and TYPE, which are those of the first page."""
    families: dict[str, list[str]] = {}
    for page in pages:
        lines, is_known = [], False
        for line in page.splitlines():
            begins = FAMILY.match(line)
            if begins:
                is_known = begins[1] in families
                lines = families.setdefault(begins[1], [])
            if not (is_known and line.startswith("#")):
                lines.append(line)
    return "".join(f"{line}\n" for lines in families.values() for line in lines)


class Refusals:
    """Requests that came to no replica, by the name under which replicas count theirs."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        names = ("endpoint", "status")
        self._requests = Counter("tinyrm_requests", "Requests that ended.", names, registry=self._registry)

    def observe(self, endpoint: str, status: int) -> None:
        self._requests.labels(endpoint, str(status)).inc()

    def expose(self) -> str:
        """Without the series of creation times, which replicas do not have either."""
        page = generate_latest(self._registry).decode()
        return "".join(f"{line}\n" for line in page.splitlines() if "tinyrm_requests_created" not in line)
