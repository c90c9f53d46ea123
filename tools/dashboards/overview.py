"""The first dashboard: whether the service keeps its objectives, and what to look at if it does not."""

from grafana_foundation_sdk.models import dashboard as models

from tools.dashboards import panels
from tools.dashboards.bounds import Bounds
from tools.dashboards.latency import where_the_time_goes
from tools.dashboards.panels import GREEN, RED, YELLOW, Panel
from tools.dashboards.queries import COMPARISONS, Query, quantiles, rate, series
from tools.dashboards.rules import FAST, MONTH, SLOW, share

FIRING = 'ALERTS{alertname=~"TinyRM.+", alertstate="firing"}'
# The windows in the order of their length: a burst shows in the first, a slow loss in the last.
SHOWN = ("5m", "1h", "6h", "3d")


def dashboard(bounds: Bounds) -> models.Dashboard:
    text = "Whether the service keeps its objectives. Start here; the other dashboards show why."
    return panels.board(
        "overview", "Overview", text, [*numbers(bounds), *budgets(bounds), *served(), *answered(bounds)]
    )


def of(slo: str, window: str) -> str:
    return f'max({share(window)}{{slo="{slo}"}})'


def numbers(bounds: Bounds) -> list[Panel]:
    left = [
        panels.number(
            f"{slo.capitalize()} budget left",
            f"Share of the error budget of 30 days that is left. {promise(slo, bounds)} "
            "Below 0 the objective is missed.",
            "percentunit",
            Query(f"1 - {of(slo, MONTH)} / {budget:g}", "left"),
            bounds=((0, YELLOW), (0.25, GREEN)),
            first=RED,
            alert=f"TinyRM{slo.capitalize()}BurnSlow",
        )
        for slo, budget in bounds.budgets.items()
    ]
    return [
        *left,
        panels.number(
            "Alerts firing",
            "Alerts of the rules in deploy/prometheus/rules.yml. The runbooks state what to do about each.",
            "none",
            Query(f"count({FIRING}) or vector(0)", "firing"),
            bounds=((1, RED),),
        ),
        panels.number(
            "Ready instances",
            "Instances whose engine ran just now and that accept new work.",
            "none",
            Query(f"sum({series('engine_ready')})", "ready"),
            bounds=((1, GREEN),),
            first=RED,
            alert="TinyRMDown",
        ),
    ]


def promise(slo: str, bounds: Bounds) -> str:
    if slo == "availability":
        return f"Objective: {bounds.availability_target:.6g} of the requests do not end with 500 or 503."
    return f"Objective: {bounds.latency_target:.6g} of /v1/compare within {bounds.latency_objective:g} s."


def budgets(bounds: Bounds) -> list[Panel]:
    page, ticket = FAST[0][2], SLOW[-1][2]
    return [
        panels.lines(
            f"Burn rate, {slo}",
            "How many times faster than allowed the error budget is used, by window; 1 uses all of it in 30 days. "
            f"Above {page:g} over an hour somebody is called; above {ticket:g} over three days a ticket is due.",
            "none",
            [Query(f"{of(slo, window)} / {budget:g}", window) for window in SHOWN],
            bounds=((ticket, YELLOW), (page, RED)),
            alert=f"TinyRM{slo.capitalize()}BurnFast",
        )
        for slo, budget in bounds.budgets.items()
    ]


def served() -> list[Panel]:
    return [
        panels.lines(
            "Comparisons",
            "Comparisons a second: answered, and refused or given up.",
            "ops",
            [Query(COMPARISONS, "answered"), Query(rate("shed_requests_total"), "refused")],
            is_stacked=True,
            alert="TinyRMShedding",
        ),
        panels.lines(
            "Alerts",
            "How many of each alert are firing.",
            "none",
            [
                Query(
                    f'sum by (alertname) ({FIRING}) or label_replace(vector(0), "alertname", "none", "", "")',
                    "{{alertname}}",
                )
            ],
        ),
    ]


def answered(bounds: Bounds) -> list[Panel]:
    return [
        panels.lines(
            "One comparison",
            "Answered calls of /v1/compare. The line is the objective.",
            "s",
            quantiles("request_duration_seconds", 0.5, 0.9, 0.99, endpoint="compare"),
            bounds=((bounds.latency_objective, RED),),
            alert="TinyRMLatencyBurnFast",
        ),
        where_the_time_goes(),
    ]
