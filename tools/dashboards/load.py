"""The dashboard of load: how much work waits, and how much is refused."""

from grafana_foundation_sdk.models import dashboard as models

from tools.dashboards import panels
from tools.dashboards.bounds import Bounds
from tools.dashboards.panels import RED, YELLOW, Panel
from tools.dashboards.queries import COMPARISONS, Query, mean, quantiles, rate, series

SHED = "shed_requests_total"


def dashboard(bounds: Bounds) -> models.Dashboard:
    text = "How much waits, and how much is refused. Work is refused early, so that accepted work is answered in time."
    return panels.board("load", "Load", text, [*numbers(bounds), *queue(), *batches(), *refused(bounds), *cohorts()])


def arrived_share(part: str) -> str:
    """Return `part` as a share of all comparisons that arrived."""
    return f"{part} / ({COMPARISONS} + {rate(SHED)})"


def numbers(bounds: Bounds) -> list[Panel]:
    return [
        panels.number("Comparisons", "Answered comparisons a second.", "ops", Query(COMPARISONS, "comparisons")),
        panels.number(
            "Waiting tokens",
            "Tokens in the queue now, over all instances. TINYRM_MAX_QUEUE_TOKENS bounds each.",
            "short",
            Query(f"sum({series('queue_tokens')})", "tokens"),
        ),
        panels.number(
            "Estimated wait",
            "How long the engine of the busiest instance needs for all the work that waits. A client that would wait "
            "longer than TINYRM_MAX_WAIT_S for its turn is refused.",
            "s",
            Query(f"max({series('queue_wait_seconds')})", "wait"),
            bounds=((1, YELLOW), (5, RED)),
        ),
        panels.number(
            "Refused",
            "Share of the comparisons that were refused or given up, for any reason.",
            "percentunit",
            Query(arrived_share(rate(SHED)), "refused"),
            bounds=((bounds.shed_share / 10, YELLOW), (bounds.shed_share, RED)),
            alert="TinyRMShedding",
        ),
    ]


def queue() -> list[Panel]:
    return [
        panels.lines(
            "Waiting tokens",
            "Tokens in the queue. A lasting queue means more work than the engine can do.",
            "short",
            [Query(f"sum by (instance) ({series('queue_tokens')})", "{{instance}}")],
        ),
        panels.lines(
            "Waiting comparisons",
            "Comparisons in the queue. A batch enters it item by item.",
            "short",
            [Query(f"sum by (instance) ({series('queue_items')})", "{{instance}}")],
        ),
        panels.lines(
            "Wait",
            "How long comparisons waited for the engine, and the time that all waiting work will take: in the engine, "
            "and before it to be encoded.",
            "s",
            [
                *quantiles("stage_duration_seconds", 0.5, 0.99, stage="queue"),
                Query(f"max({series('queue_wait_seconds')})", "engine"),
                Query(f"max({series('encode_wait_seconds')})", "encoding"),
            ],
        ),
        panels.lines(
            "Answered and refused",
            "Comparisons a second.",
            "ops",
            [Query(COMPARISONS, "answered"), Query(rate(SHED), "refused")],
            is_stacked=True,
        ),
    ]


def batches() -> list[Panel]:
    return [
        panels.lines(
            "Sequences in a batch",
            "The two orders of a comparison are two sequences. Batches grow when work waits: there is no timer.",
            "none",
            [Query(mean("batch_items"), "mean"), *quantiles("batch_items", 0.99)],
        ),
        panels.lines(
            "Tokens in a batch",
            "Padding included. TINYRM_MAX_BATCH_TOKENS bounds it.",
            "short",
            [Query(mean("batch_tokens"), "mean"), *quantiles("batch_tokens", 0.99)],
        ),
    ]


def refused(bounds: Bounds) -> list[Panel]:
    late = arrived_share(rate(SHED, reason="deadline_exceeded"))
    return [
        panels.lines(
            "Refused, by reason",
            "Comparisons a second. overloaded: the queue is full; deadline_exceeded: the request's "
            "own deadline passed; engine_restarting: the engine was lost; shutting_down: the instance exits.",
            "ops",
            [Query(rate(SHED, "reason"), "{{reason}}")],
            is_stacked=True,
            alert="TinyRMShedding",
        ),
        panels.lines(
            "Deadlines missed",
            "Share of the comparisons that were not answered within the request's own deadline (X-Request-Timeout-Ms).",
            "percentunit",
            [Query(late, "missed")],
            bounds=((bounds.shed_share, RED),),
        ),
    ]


def cohorts() -> list[Panel]:
    return [
        panels.lines(
            "Cohorts",
            "Groups whose samples arrive one by one from a trainer and wait to be complete; 0 without such a dialect.",
            "short",
            [Query(f"sum({series('cohorts_open')})", "open"), Query(f"sum({series('cohort_samples')})", "samples")],
        ),
        panels.lines(
            "Cohorts judged, by reason",
            "full: all samples arrived; deadline: some were missing; drain: the instance exited.",
            "ops",
            [Query(rate("cohorts_completed_total", "reason"), "{{reason}}")],
            is_stacked=True,
        ),
        panels.lines(
            "Partial rewards",
            "Rewards that were not made from all responses of their group, by dialect: the log has what to set.",
            "ops",
            [Query(rate("partial_rewards_total", "endpoint"), "{{endpoint}}")],
            width=24,
            is_stacked=True,
        ),
    ]
