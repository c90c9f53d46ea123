"""Prometheus' recording rules and alerts.

docs/operations.md has a section for each alert; deploy/prometheus/rules_test.yml shows each one firing and silent.
"""

from typing import Any

import yaml

from tools.dashboards.bounds import DOCS_URL, Bounds

HEADER = """\
# Recording rules and alerts, written by `python -m tools.dashboards`: change tools/dashboards/, not this file.
# docs/operations.md has a section for each alert; rules_test.yml shows each one firing and silent.
"""
Rule = dict[str, Any]

# The windows of each alert: long, short, and how many times faster than allowed the budget is used in both.
# Fast: 2 % of a month's budget in an hour, or 5 % in six. Slow: a tenth of it in one day, or in three.
FAST = (("1h", "5m", 14.4), ("6h", "30m", 6.0))
SLOW = (("1d", "2h", 3.0), ("3d", "6h", 1.0))
MONTH = "30d"
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d", MONTH)
# Averages over a month of a value each minute are cheap to record.
SLO_INTERVAL = "1m"

# Scrapes, health checks and the page are no requests of users. The page counts tokens while somebody types, without the
# engine: such calls succeed when no comparison does, and would hide that.
WORK = 'endpoint!~"other|tokens"'
# 429 asks a caller to send less, and 504 is the caller's own deadline: neither is a failure of the service.
FAILED = f'tinyrm_requests_total{{{WORK}, status=~"500|503"}}'
ANSWERED = 'tinyrm_request_duration_seconds_count{endpoint="compare"}'


def text(bounds: Bounds) -> str:
    """Return rules.yml."""
    groups = [
        {"name": "tinyrm-recorded", "rules": recorded()},
        {"name": "tinyrm-objectives", "interval": SLO_INTERVAL, "rules": objectives(bounds)},
        {"name": "tinyrm-burn", "rules": burning(bounds)},
        {"name": "tinyrm-serving", "rules": serving(bounds)},
        {"name": "tinyrm-judging", "rules": judging(bounds)},
        {"name": "tinyrm-machine", "rules": machine(bounds)},
    ]
    return HEADER + yaml.dump({"groups": groups}, Dumper=Dumper, sort_keys=False, width=120)


class Dumper(yaml.SafeDumper):
    """Write expressions of several lines as they are, and no references."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  # a reader finds each value where it is used
        return True

    def represent_str(self, data: str) -> Any:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


Dumper.add_representer(str, Dumper.represent_str)


def alert(name: str, expr: str, hold: str, severity: str, summary: str) -> Rule:
    """Return an alert.

    hold: for how long its condition must be true; empty for no time.
    """
    rule: Rule = {"alert": name, "expr": expr}
    if hold:
        rule["for"] = hold
    link = f"{DOCS_URL}/operations/#{name.lower()}"
    return rule | {"labels": {"severity": severity}, "annotations": {"summary": summary, "runbook_url": link}}


def recorded() -> list[Rule]:
    return [
        {
            "record": "instance:tinyrm_comparisons:rate5m",
            "expr": 'sum by (job, instance) (rate(tinyrm_stage_duration_seconds_count{stage="total"}[5m]))',
        },
        {
            "record": "instance:tinyrm_resident_memory_bytes:sum",
            "expr": "sum by (job, instance) (tinyrm_process_resident_memory_bytes)",
        },
        {
            "record": "job:tinyrm_first_position_margin:median1h",
            "expr": "histogram_quantile(0.5, sum by (job, le) (rate(tinyrm_first_position_margin_bucket[1h])))",
        },
    ]


def in_time(bounds: Bounds) -> str:
    """Return the selector of the answered calls within the objective."""
    return f'tinyrm_request_duration_seconds_bucket{{endpoint="compare", le="{bounds.latency_bucket}"}}'


def bad(slo: str, function: str, window: str, bounds: Bounds) -> str:
    """Return the bad requests of an objective: their rate or their increase."""
    if slo == "availability":
        return f"sum by (job) ({function}({FAILED}[{window}]))"
    every, good = (f"sum by (job) ({function}({series}[{window}]))" for series in (ANSWERED, in_time(bounds)))
    return f"{every}\n- {good}"


def objectives(bounds: Bounds) -> list[Rule]:
    """Record, for each objective, its requests, the bad ones, and their share in every window.

    Shares in long windows are quotients of averages of the recorded rates: few samples, and right when traffic varies.
    """
    rules: list[Rule] = []
    arrived = {"availability": f"tinyrm_requests_total{{{WORK}}}", "latency": ANSWERED}
    for slo, series in arrived.items():
        labels = {"slo": slo}
        every = f"sum by (job) (rate({series}[5m]))"
        rules.append({"record": "job_slo:tinyrm_requests:rate5m", "expr": every, "labels": labels})
        failed = bad(slo, "rate", "5m", bounds)
        rules.append({"record": "job_slo:tinyrm_bad_requests:rate5m", "expr": failed, "labels": labels})
    for window in WINDOWS:
        wrong, all_of_them = "job_slo:tinyrm_bad_requests:rate5m", "job_slo:tinyrm_requests:rate5m"
        if window != "5m":
            wrong, all_of_them = (f"avg_over_time({series}[{window}])" for series in (wrong, all_of_them))
        rules.append({"record": share(window), "expr": f"{wrong} / {all_of_them}"})
    return rules


def share(window: str) -> str:
    """Return the name of the recorded share of bad requests."""
    return f"job_slo:tinyrm_bad_requests:ratio_rate{window}"


def burning(bounds: Bounds) -> list[Rule]:
    """Return the alerts on how fast error budgets are used.

    The short window ends an alert soon after its cause has ended.
    """
    rules = []
    for slo, budget in bounds.budgets.items():
        of = f'{{slo="{slo}"}}'
        share_of = "{{ $labels.job }}: {{ $value | humanizePercentage }} of "
        late = f"the calls of /v1/compare take longer than {bounds.latency_objective:g} s"
        what = "the requests fail" if slo == "availability" else late
        for speed, windows, counted, hold, severity in (
            ("Fast", FAST, "1h", "2m", "critical"),
            ("Slow", SLOW, "1d", "15m", "warning"),
        ):
            burns = "\n or ".join(
                f"({share(long)}{of} > {factor:g} * {budget:g} and {share(short)}{of} > {factor:g} * {budget:g})"
                for long, short, factor in windows
            )
            enough = f"{bad(slo, 'increase', counted, bounds)} >= {bounds.min_bad_requests:g}"
            rules.append(
                alert(
                    f"TinyRM{slo.capitalize()}Burn{speed}",
                    f"({burns})\nand on (job) {enough}",
                    hold,
                    severity,
                    f"{share_of}{what}; the objective allows {100 * budget:.6g}%",
                )
            )
    return rules


def serving(bounds: Bounds) -> list[Rule]:
    refused = 'rate(tinyrm_shed_requests_total{reason=~"overloaded|deadline_exceeded"}[5m])'
    every = "(sum by (job, instance) (rate(tinyrm_shed_requests_total[5m])) + instance:tinyrm_comparisons:rate5m)"
    requests = f"tinyrm_requests_total{{{WORK}}}"
    return [
        alert(
            "TinyRMDown",
            # A target whose name no longer resolves is absent, not down.
            'up{job="tinyrm"} == 0 or absent(up{job="tinyrm"})',
            "1m",
            "critical",
            "{{ if $labels.instance }}{{ $labels.instance }} does not answer scrapes{{ else }}"
            "Prometheus has no instance of {{ $labels.job }} to scrape{{ end }}",
        ),
        alert(
            "TinyRMEngineDown",
            "tinyrm_engine_ready == 0",
            "30s",
            "critical",
            "{{ $labels.instance }} answers, but its engine does not",
        ),
        alert(
            "TinyRMEngineRestarts",
            "increase(tinyrm_engine_restarts[15m]) > 2",
            "",
            "warning",
            "{{ $labels.instance }} lost its engine {{ $value | humanize }} times in 15 minutes",
        ),
        alert(
            "TinyRMShedding",
            f"sum by (job, instance) ({refused})\n/ {every}\n> {bounds.shed_share:g}",
            "5m",
            "warning",
            "{{ $labels.instance }} refuses or gives up {{ $value | humanizePercentage }} of its comparisons",
        ),
        alert(
            "TinyRMNoTraffic",
            # Traffic before: more than one request in a hundred seconds over an hour.
            f"sum by (job) (rate({requests}[10m])) == 0 and sum by (job) (rate({requests}[1h] offset 10m)) > 0.01",
            "5m",
            "warning",
            "Requests have stopped",
        ),
    ]


def judging(bounds: Bounds) -> list[Rule]:
    median = "job:tinyrm_first_position_margin:median1h"
    return [
        alert(
            "TinyRMPositionBias",
            f"abs({median}) > {bounds.first_position:g}",
            "30m",
            "warning",
            "The first position adds {{ $value | humanize }} to the log-odds of a response, at the median",
        ),
        alert(
            "TinyRMPositionBiasDrift",
            # The median of few comparisons moves by chance.
            f"abs({median} - {median} offset 1d) > {bounds.first_position_move:g}"
            "\nand sum by (job) (increase(tinyrm_first_position_margin_count[1h])) > 200",
            "30m",
            "warning",
            "What the first position adds has moved by {{ $value | humanize }} since yesterday",
        ),
        alert(
            "TinyRMTruncation",
            "sum by (job) (rate(tinyrm_truncated_comparisons_total[30m]))"
            '\n/ sum by (job) (rate(tinyrm_stage_duration_seconds_count{stage="total"}[30m]))'
            f" > {bounds.truncated_share:g}",
            "30m",
            "warning",
            "{{ $value | humanizePercentage }} of the comparisons exceed the model's maximum length",
        ),
    ]


def machine(bounds: Bounds) -> list[Rule]:
    memory = "instance:tinyrm_resident_memory_bytes:sum"
    return [
        alert(
            "TinyRMMemoryGrowth",
            # The first long texts take memory once: only growth in each of the last two hours is a leak.
            f"deriv({memory}[2h]) * 3600 > {bounds.memory_growth_bytes_per_hour:g}"
            f"\nand {memory} > 1.05 * ({memory} offset 1h)"
            f"\nand ({memory} offset 1h) > 1.05 * ({memory} offset 2h)",
            "30m",
            "warning",
            "{{ $labels.instance }} grows by {{ $value | humanize1024 }}B an hour",
        ),
        alert(
            "TinyRMEventLoopLate",
            f"max_over_time(tinyrm_event_loop_lag_seconds[1m]) > {bounds.loop_lag_s:g}",
            "5m",
            "warning",
            "The event loop of {{ $labels.instance }} is {{ $value | humanizeDuration }} late",
        ),
    ]
