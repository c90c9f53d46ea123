"""The dashboard of processes: whether the service runs, on what, and how much of the machine it uses."""

from grafana_foundation_sdk.models import dashboard as models

from tools.dashboards import panels
from tools.dashboards.bounds import Bounds
from tools.dashboards.panels import RED, YELLOW, Panel
from tools.dashboards.queries import Query, increase, rate, series

ROLES = "service: the main process; front: an HTTP process, with TINYRM_WORKERS above 1; engine: "


def dashboard(bounds: Bounds) -> models.Dashboard:
    text = "Whether the service runs, on what, and how much of the machine it uses."
    return panels.board("process", "Process", text, [*served(), *health(), *machine(bounds), *scrapes()])


def served() -> list[Panel]:
    return [
        panels.number(
            "Ready instances",
            "Instances whose engine ran just now and that accept new work.",
            "none",
            Query(f"sum({series('engine_ready')})", "ready"),
            bounds=((1, panels.GREEN),),
            first=RED,
            alert="TinyRMDown",
        ),
        panels.name("Version", "Of the service.", Query(f"max by (version) ({series('build_info')})", "{{version}}")),
        panels.name(
            "Model",
            "Name and revision. Two at once: a reload, or instances that differ.",
            Query(f"max by (name, revision) ({series('model_info')})", "{{name}}@{{revision}}"),
        ),
        panels.name(
            "Engine",
            "What the model runs on, and in which precision.",
            Query(f"max by (engine, precision) ({series('engine_info')})", "{{engine}} {{precision}}"),
        ),
    ]


def health() -> list[Panel]:
    return [
        panels.lines(
            "Engine ready",
            "1: the engine ran just now. 0: it restarts or hangs, or the instance exits.",
            "none",
            [Query(series("engine_ready"), "{{instance}}")],
            width=8,
            is_share=True,
            alert="TinyRMEngineDown",
        ),
        panels.lines(
            "Engines restarted",
            "Since the instance started. The log has the reason of each restart.",
            "none",
            [Query(series("engine_restarts"), "{{instance}}")],
            width=8,
            alert="TinyRMEngineRestarts",
        ),
        panels.lines(
            "Engine runs that failed",
            "In the last minutes, including runs that returned NaN.",
            "none",
            [Query(increase("engine_errors_total", "instance"), "{{instance}}")],
            width=8,
        ),
    ]


def machine(bounds: Bounds) -> list[Panel]:
    by, legend = "instance, role", "{{role}} {{instance}}"
    return [
        panels.lines(
            "Memory",
            f"Resident. {ROLES}the model. Grows with the first long texts, then stays constant.",
            "bytes",
            [Query(f"sum by ({by}) ({series('process_resident_memory_bytes')}) > 0", legend)],
            is_stacked=True,
            alert="TinyRMMemoryGrowth",
        ),
        panels.lines(
            "Memory without double counting",
            f"Proportional. {ROLES}the model. A page that several processes share counts once: what the machine "
            "must have.",
            "bytes",
            [Query(f"sum by ({by}) ({series('process_proportional_memory_bytes')}) > 0", legend)],
            is_stacked=True,
        ),
        panels.lines(
            "CPU",
            f"Cores in use. {ROLES}the model.",
            "none",
            [Query(rate("process_cpu_seconds_total", by), legend)],
            is_stacked=True,
        ),
        panels.lines(
            "Open files",
            "Connections are files, too: the limit on files bounds the connections.",
            "short",
            [Query(f"sum by ({by}) ({series('process_open_fds')}) > 0", legend)],
        ),
        panels.lines(
            "Lateness of the event loop",
            "How late an HTTP process wakes up. Every request is delayed by as much; "
            "above the line, TINYRM_WORKERS helps.",
            "s",
            [Query(f"max by (instance) ({series('event_loop_lag_seconds')})", "{{instance}}")],
            bounds=((bounds.loop_lag_s, YELLOW),),
            alert="TinyRMEventLoopLate",
        ),
    ]


def scrapes() -> list[Panel]:
    here = f"and on (instance, job) {series('build_info')}"
    return [
        panels.lines(
            "Duration of a scrape",
            "How long Prometheus waits for /metrics.",
            "s",
            [Query(f"scrape_duration_seconds {here}", "{{instance}}")],
        ),
        panels.lines(
            "Series",
            "Series that an instance exposes. Their number does not grow with traffic.",
            "short",
            [Query(f"scrape_samples_scraped {here}", "{{instance}}")],
        ),
    ]
