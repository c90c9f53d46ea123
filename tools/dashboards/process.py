"""Whether it runs, on what, and what it takes of the machine."""

from grafana_foundation_sdk.models import dashboard as models

from tools.dashboards import panels
from tools.dashboards.bounds import LOOP_LAG_S
from tools.dashboards.panels import RED, YELLOW, Panel
from tools.dashboards.queries import Query, increase, rate, series

ROLES = (
    "service: the process that was started; front: one that speaks HTTP for it, with TINYRM_WORKERS above 1; engine: "
)


def dashboard() -> models.Dashboard:
    text = "Whether it runs, on what, and what it takes of the machine."
    return panels.board("process", "Process", text, [*served(), *health(), *machine(), *scrapes()])


def served() -> list[Panel]:
    return [
        panels.number(
            "Ready instances", "Instances whose engine answered just now and which take new work.", "none",
            Query(f"sum({series('engine_ready')})", "ready"), bounds=((1, panels.GREEN),), first=RED,
        ),
        panels.name("Version", "Of the service.", Query(f"max by (version) ({series('build_info')})", "{{version}}")),
        panels.name("Model", "Name and revision. Two at once: a reload, or instances that differ.",
                    Query(f"max by (name, revision) ({series('model_info')})", "{{name}}@{{revision}}")),
        panels.name("Engine", "What the model runs on, and in which precision.",
                    Query(f"max by (engine, precision) ({series('engine_info')})", "{{engine}} {{precision}}")),
    ]  # fmt: skip


def health() -> list[Panel]:
    return [
        panels.lines(
            "Engine ready", "1: something went through the engine just now. 0: it is being restarted, it hangs, or the "
            "instance leaves.", "none", [Query(series("engine_ready"), "{{instance}}")], width=8, is_share=True,
        ),
        panels.lines("Engines restarted", "Since the instance started. Each one has its reason in the log.", "none",
                     [Query(series("engine_restarts"), "{{instance}}")], width=8),
        panels.lines("Engine runs that failed", "In the last minutes; an answer that is no number counts, too.", "none",
                     [Query(increase("engine_errors_total", "instance"), "{{instance}}")], width=8),
    ]  # fmt: skip


def machine() -> list[Panel]:
    by, legend = "instance, role", "{{role}} {{instance}}"
    return [
        panels.lines(
            "Memory", f"Resident. {ROLES}the model. Grows with the first long texts and then stays.", "bytes",
            [Query(f"sum by ({by}) ({series('process_resident_memory_bytes')}) > 0", legend)], is_stacked=True,
        ),
        panels.lines("CPU", f"Cores in use. {ROLES}the model.", "none",
                     [Query(rate("process_cpu_seconds_total", by), legend)], is_stacked=True),
        panels.lines("Open files", "Connections are files, too. A limit on them bounds the connections.", "short",
                     [Query(f"sum by ({by}) ({series('process_open_fds')}) > 0", legend)]),
        panels.lines(
            "Lateness of the event loop", "How late a process that speaks HTTP wakes up. Every request suffers as "
            "much: above it, TINYRM_WORKERS helps.", "s",
            [Query(f"max by (instance) ({series('event_loop_lag_seconds')})", "{{instance}}")],
            bounds=((LOOP_LAG_S, YELLOW),),
        ),
    ]  # fmt: skip


def scrapes() -> list[Panel]:
    here = f"and on (instance, job) {series('build_info')}"
    return [
        panels.lines("Duration of a scrape", "What Prometheus waits for /metrics.", "s",
                     [Query(f"scrape_duration_seconds {here}", "{{instance}}")]),
        panels.lines("Series", "That an instance exposes. It does not grow with traffic.", "short",
                     [Query(f"scrape_samples_scraped {here}", "{{instance}}")]),
    ]  # fmt: skip
