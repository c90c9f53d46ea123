"""How much waits, and what is refused."""

from grafana_foundation_sdk.models import dashboard as models

from tools.dashboards import panels
from tools.dashboards.bounds import SHED_SHARE
from tools.dashboards.panels import RED, YELLOW, Panel
from tools.dashboards.queries import COMPARISONS, Query, mean, quantiles, rate, series

SHED = "shed_requests_total"


def dashboard() -> models.Dashboard:
    text = "How much waits, and what is refused. Work is refused early, so that what is accepted is answered in time."
    return panels.board("load", "Load", text, [*numbers(), *queue(), *batches(), *refused(), *cohorts()])


def of_all(part: str) -> str:
    """As a share of all comparisons that came."""
    return f"{part} / ({COMPARISONS} + {rate(SHED)})"


def numbers() -> list[Panel]:
    return [
        panels.number("Comparisons", "Answered comparisons a second.", "ops", Query(COMPARISONS, "comparisons")),
        panels.number(
            "Waiting tokens", "Tokens in the queue now, over all instances. TINYRM_MAX_QUEUE_TOKENS bounds each.",
            "short", Query(f"sum({series('queue_tokens')})", "tokens"),
        ),
        panels.number(
            "Estimated wait", "How long new work would wait, on the busiest instance. Above TINYRM_MAX_WAIT_S it is "
            "refused.", "s", Query(f"max({series('queue_wait_seconds')})", "wait"), bounds=((1, YELLOW), (5, RED)),
        ),
        panels.number(
            "Refused", "Share of the comparisons that were refused or given up, for whatever reason.", "percentunit",
            Query(of_all(rate(SHED)), "refused"), bounds=((SHED_SHARE / 10, YELLOW), (SHED_SHARE, RED)),
        ),
    ]  # fmt: skip


def queue() -> list[Panel]:
    return [
        panels.lines("Waiting tokens", "Tokens in the queue. Lasting means more work than the engine can do.", "short",
                     [Query(f"sum by (instance) ({series('queue_tokens')})", "{{instance}}")]),
        panels.lines("Waiting comparisons", "Comparisons in the queue. A list enters it item by item.", "short",
                     [Query(f"sum by (instance) ({series('queue_items')})", "{{instance}}")]),
        panels.lines(
            "Wait", "How long comparisons waited for the engine, and how long new ones would, as admission guesses.",
            "s", [*quantiles("stage_duration_seconds", 0.5, 0.99, stage="queue"),
                  Query(f"max({series('queue_wait_seconds')})", "estimate")],
        ),
        panels.lines("Answered and refused", "Comparisons a second.", "ops",
                     [Query(COMPARISONS, "answered"), Query(rate(SHED), "refused")], is_stacked=True),
    ]  # fmt: skip


def batches() -> list[Panel]:
    return [
        panels.lines(
            "Readings in a batch", "Both orders of a comparison are two readings. Batches grow by themselves when work "
            "waits: there is no timer.", "none",
            [Query(mean("batch_items"), "mean"), *quantiles("batch_items", 0.99)],
        ),
        panels.lines("Tokens in a batch", "Padding included. TINYRM_MAX_BATCH_TOKENS bounds it.", "short",
                     [Query(mean("batch_tokens"), "mean"), *quantiles("batch_tokens", 0.99)]),
    ]  # fmt: skip


def refused() -> list[Panel]:
    late = of_all(rate(SHED, reason="deadline_exceeded"))
    return [
        panels.lines(
            "Refused, by reason", "Comparisons a second. overloaded: too much waits; deadline_exceeded: the request's "
            "own time was over; engine_restarting: the engine was lost; shutting_down: the instance leaves.", "ops",
            [Query(rate(SHED, "reason"), "{{reason}}")], is_stacked=True,
        ),
        panels.lines(
            "Deadlines missed", "Share of the comparisons that were not answered within the time that their request "
            "gave itself (X-Request-Timeout-Ms).", "percentunit", [Query(late, "missed")], bounds=((SHED_SHARE, RED),),
        ),
    ]  # fmt: skip


def cohorts() -> list[Panel]:
    return [
        panels.lines(
            "Cohorts", "Groups of samples that trainers send one by one, and that wait to be complete; 0 without a "
            "dialect that does so.", "short",
            [Query(f"sum({series('cohorts_open')})", "open"), Query(f"sum({series('cohort_samples')})", "samples")],
        ),
        panels.lines(
            "Cohorts judged, by why", "full: all came; deadline: somebody was missing; drain: the instance left.",
            "ops", [Query(rate("cohorts_completed_total", "reason"), "{{reason}}")], is_stacked=True,
        ),
    ]  # fmt: skip
