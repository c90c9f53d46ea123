"""The dashboard of latency: how long callers wait, and for what."""

from grafana_foundation_sdk.models import dashboard as models

from tools.dashboards import panels
from tools.dashboards.bounds import Bounds
from tools.dashboards.panels import RED, YELLOW, Panel
from tools.dashboards.queries import Query, increase, quantile, quantiles, rate

HISTOGRAM = "request_duration_seconds"
# Scrapes and health checks are left out: they would count as fast requests.
WORK = {"endpoint": "!other"}
# What the availability objective counts; see `tools.dashboards.rules`.
COUNTED = {"endpoint": "!~other|tokens"}
ANSWERED = {"endpoint": "compare"}


def dashboard(bounds: Bounds) -> models.Dashboard:
    text = "How long callers wait, and for what. A slow stage shows in the breakdown before it shows in the p99."
    return panels.board("latency", "Latency", text, [*numbers(bounds), *answered(bounds), *where(), *outcomes()])


def marks(bounds: Bounds) -> tuple[tuple[float, str], ...]:
    """Return the objective, and half of it, with their colours."""
    return (bounds.latency_objective / 2, YELLOW), (bounds.latency_objective, RED)


def numbers(bounds: Bounds) -> list[Panel]:
    failed = f"{rate('requests_total', status='~500|503', **COUNTED)} / {rate('requests_total', **COUNTED)}"
    within = rate(f"{HISTOGRAM}_bucket", le=bounds.latency_bucket, **ANSWERED)
    budgets = bounds.budgets
    return [
        panels.number(
            "p99 of one comparison",
            "99 of 100 answered calls of /v1/compare took at most this long.",
            "s",
            Query(quantile(0.99, HISTOGRAM, **ANSWERED), "p99"),
            bounds=marks(bounds),
            alert="TinyRMLatencyBurnFast",
        ),
        panels.number(
            f"Within {bounds.latency_objective:g} s",
            f"Share of the answered calls of /v1/compare within the objective. "
            f"The target is {bounds.latency_target:.6g}, over 30 days.",
            "percentunit",
            Query(f"{within} / {rate(f'{HISTOGRAM}_count', **ANSWERED)}", "within"),
            bounds=((1 - 5 * budgets["latency"], YELLOW), (bounds.latency_target, panels.GREEN)),
            first=RED,
            alert="TinyRMLatencyBurnSlow",
        ),
        panels.number(
            "Requests",
            "Requests a second that ended, without health checks, scrapes and the page.",
            "reqps",
            Query(rate("requests_total", **WORK), "requests"),
            alert="TinyRMNoTraffic",
        ),
        panels.number(
            "Failed",
            "Share of the requests that ended with 500 or 503. The budget over 30 days is "
            f"{budgets['availability']:.6g}.",
            "percentunit",
            Query(failed, "failed"),
            bounds=((budgets["availability"], YELLOW), (10 * budgets["availability"], RED)),
            alert="TinyRMAvailabilityBurnFast",
        ),
    ]


def answered(bounds: Bounds) -> list[Panel]:
    return [
        panels.lines(
            "One comparison",
            "Answered calls of /v1/compare. A p99 far above the p50 means that some requests wait: "
            "compare with the stages.",
            "s",
            quantiles(HISTOGRAM, 0.5, 0.9, 0.99, **ANSWERED),
            bounds=marks(bounds),
        ),
        panels.heat(
            "One comparison, distribution",
            "Answered calls of /v1/compare by duration. Two bands mean two kinds of "
            "requests, such as short and long texts.",
            "s",
            Query(increase(f"{HISTOGRAM}_bucket", "le", **ANSWERED), "{{le}}"),
        ),
        *(by_endpoint(share) for share in (0.5, 0.9, 0.99)),
    ]


def by_endpoint(share: float) -> Panel:
    query = quantile(share, HISTOGRAM, "endpoint", **WORK)
    text = "Answered requests. A batch or a ranking is one request, however many comparisons it holds."
    return panels.lines(f"p{share * 100:g} by endpoint", text, "s", [Query(query, "{{endpoint}}")], width=8)


def where() -> list[Panel]:
    return [
        where_the_time_goes(),
        panels.lines(
            "Waiting for the engine",
            "The stage queue alone, which is what load adds to a comparison.",
            "s",
            quantiles("stage_duration_seconds", 0.5, 0.9, 0.99, stage="queue"),
        ),
    ]


def where_the_time_goes() -> Panel:
    stage, count = "stage_duration_seconds_sum", rate("stage_duration_seconds_count", stage="total")
    stages = [Query(f"{rate(stage, stage=one)} / {count}", one) for one in ("encode", "queue", "run")]
    rest = f"clamp_min({rate(stage, stage='total')} - {rate(stage, stage='!total')}, 0) / {count}"
    return panels.lines(
        "Where the time goes",
        "Mean seconds of a comparison. encode: text to tokens; queue: waiting for the "
        "engine; run: the engine; rest: between them. A growing queue means more work than the engine can do.",
        "s",
        [*stages, Query(rest, "rest")],
        is_stacked=True,
    )


def outcomes() -> list[Panel]:
    return [
        panels.lines(
            "Requests by endpoint",
            "Requests a second that ended.",
            "reqps",
            [Query(rate("requests_total", "endpoint", **WORK), "{{endpoint}}")],
        ),
        panels.lines(
            "Requests by status",
            "Only statuses that occurred. 429: the queue is full; 499: the client disconnected; "
            "503: the instance exits or its engine restarts; 504: the caller's own deadline passed.",
            "reqps",
            [Query(f"{rate('requests_total', 'status', **WORK)} > 0", "{{status}}")],
        ),
    ]
