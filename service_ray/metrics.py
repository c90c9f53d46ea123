"""Merge the metrics of many replicas into one page, where each series has a label for its replica.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import re
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, generate_latest

FAMILY = re.compile(r"^# HELP (\S+) ")
SERIES = re.compile(r"^([A-Za-z_:][\w:]*)(\{?)(.*)$")


def label_page(page: str, replica: str) -> str:
    """Return the page with `replica` as the first label of every series. The name is not escaped."""

    def add_label(series: re.Match[str]) -> str:
        name, brace, rest = series.groups()
        return f'{name}{{replica="{replica}"{f",{rest}" if brace else f"}}{rest}"}'

    return "".join(f"{SERIES.sub(add_label, line)}\n" for line in page.splitlines())


def merge_pages(pages: Iterable[str]) -> str:
    """Return one page with all series of a family together, under the HELP and TYPE of the first page."""
    families: dict[str, list[str]] = {}
    for page in pages:
        lines: list[str] = []
        is_known = False
        for line in page.splitlines():
            header = FAMILY.match(line)
            if header:
                is_known = header[1] in families
                lines = families.setdefault(header[1], [])
            if not (is_known and line.startswith("#")):
                lines.append(line)
    return "".join(f"{line}\n" for lines in families.values() for line in lines)


class Refusals:
    """Counts requests that did not reach a replica, in the same metric as the replicas."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        names = ("endpoint", "status")
        self._requests = Counter("tinyrm_requests", "Requests that ended.", names, registry=self._registry)

    def observe(self, endpoint: str, status: int) -> None:
        self._requests.labels(endpoint, str(status)).inc()

    def expose(self) -> str:
        """Return the page without creation times, which replicas do not have either."""
        page = generate_latest(self._registry).decode()
        return "".join(f"{line}\n" for line in page.splitlines() if "tinyrm_requests_created" not in line)
