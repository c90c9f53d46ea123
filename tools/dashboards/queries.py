"""Build PromQL. Every query selects the instances of the dashboard's variable.

A label's value is matched as it is; `~` before it makes it a regular expression, `!` excludes it, `!~` both.
"""

from dataclasses import dataclass

INSTANCES = 'instance=~"$instance"'
MATCHES = {"!~": "!~", "~": "=~", "!": "!="}


@dataclass(frozen=True, slots=True)
class Query:
    """legend: with {{label}} for a label's value."""

    expr: str
    legend: str


def series(name: str, **labels: str) -> str:
    return f"tinyrm_{name}{{{', '.join([INSTANCES, *map(matcher, labels.items())])}}}"


def matcher(label: tuple[str, str]) -> str:
    name, value = label
    for prefix, sign in MATCHES.items():
        if value.startswith(prefix):
            return f'{name}{sign}"{value.removeprefix(prefix)}"'
    return f'{name}="{value}"'


def rate(name: str, by: str = "", **labels: str) -> str:
    """Return the rate per second, summed over all labels but `by`."""
    return f"sum{grouped(by)} (rate({series(name, **labels)}[$__rate_interval]))"


def increase(name: str, by: str = "", **labels: str) -> str:
    return f"sum{grouped(by)} (increase({series(name, **labels)}[$__rate_interval]))"


def quantile(share: float, histogram: str, by: str = "", **labels: str) -> str:
    within = ", ".join(["le", *filter(None, [by])])
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', within, **labels)})"


def mean(histogram: str, by: str = "", **labels: str) -> str:
    return f"{rate(f'{histogram}_sum', by, **labels)} / {rate(f'{histogram}_count', by, **labels)}"


def quantiles(histogram: str, *shares: float, **labels: str) -> list[Query]:
    """Return one query for each share, with a legend such as p50."""
    return [Query(quantile(share, histogram, **labels), f"p{share * 100:g}") for share in shares]


def grouped(by: str) -> str:
    return f" by ({by})" if by else ""


COMPARISONS = rate("stage_duration_seconds_count", stage="total")
