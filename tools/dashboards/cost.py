"""The dashboard of cost: operations, tokens and seconds of a comparison, and how much of the hardware is used."""

from grafana_foundation_sdk.models import dashboard as models

from tools.dashboards import panels
from tools.dashboards.bounds import Bounds
from tools.dashboards.panels import RED, YELLOW, Panel
from tools.dashboards.queries import COMPARISONS, Query, mean, quantiles, rate, series

RUN = "engine_run_seconds_total"
EXACT = {"formula": "exact"}


def dashboard(_: Bounds) -> models.Dashboard:
    text = "What a comparison costs in operations, tokens and seconds, and how much of the hardware is used."
    return panels.board("cost", "Cost", text, [*numbers(), *operations(), *tokens(), *seconds()])


def numbers() -> list[Panel]:
    return [
        panels.number(
            "GFLOPs per comparison",
            "Billions of operations that the logits of a comparison needed, exact count, "
            "mean. Of a model of pairs both orders count unless the request sets swap.",
            "none",
            Query(mean("request_gflops", **EXACT), "exact"),
        ),
        panels.number(
            "MFU",
            "Useful operations a second while the engine ran, as a share of the peak of the hardware, over all "
            "instances. TINYRM_PEAK_GFLOPS_PER_S sets the peak.",
            "percentunit",
            Query(mfu(RUN), "MFU"),
        ),
        panels.number(
            "Padding",
            "Share of the computed tokens that are padding: cost without use. Engines on CPUs compute none.",
            "percentunit",
            Query(f"{rate('tokens_total', kind='padding')} / {rate('tokens_total')}", "padding"),
            bounds=((0.1, YELLOW), (0.25, RED)),
        ),
        panels.number("Comparisons", "Answered comparisons a second.", "ops", Query(COMPARISONS, "comparisons")),
    ]


def mfu(seconds: str) -> str:
    peak = f"max({series('engine_peak_gflops_per_second')})"
    return f"{rate('engine_gflops_total')} / {rate(seconds)} / {peak}"


def operations() -> list[Panel]:
    idle = f"{rate('engine_gflops_total')} / sum({series('engine_peak_gflops_per_second')})"
    return [
        panels.lines(
            "Operations a second",
            "Of answered comparisons, also if identical ones were computed once. exact: what the graph computes; "
            "paper: the formula of the paper, 2 x parameters x tokens and attention, for comparison with published "
            "numbers.",
            "flops",
            [Query(f"1e9 * {rate('gflops_total', 'formula')}", "{{formula}}")],
        ),
        panels.lines(
            "GFLOPs per comparison",
            "Billions of operations, exact count. Grows with the length of the texts, in global "
            "attention layers with its square.",
            "none",
            quantiles("request_gflops", 0.5, 0.9, 0.99, **EXACT),
        ),
        panels.lines(
            "Use of the hardware",
            "MFU while running: how well the engine computes. MFU over all time includes "
            "idle time, which more load would fill. Last run: single engine runs.",
            "percentunit",
            [
                Query(mfu(RUN), "while running"),
                Query(idle, "over all time"),
                Query(f"avg({series('engine_mfu_ratio')})", "last run"),
            ],
            is_share=True,
        ),
        panels.lines(
            "Engine busy",
            "Share of the time that the engine runs, by instance. Near 1 the engine is full, and work waits; "
            "above 1 it has several streams.",
            "percentunit",
            [Query(rate(RUN, "instance"), "{{instance}}")],
            bounds=((0.9, YELLOW),),
        ),
    ]


def tokens() -> list[Panel]:
    needed = f"({rate('tokens_total', kind='real')} + {rate('tokens_reused_total')})"
    return [
        panels.lines(
            "Tokens a second",
            "Tokens that the engine computed. padding: added so that all texts of a batch have the same length.",
            "suffix: tokens/s",
            [Query(rate("tokens_total", "kind"), "{{kind}}")],
            is_stacked=True,
        ),
        panels.lines(
            "Reused tokens",
            "Share of the tokens that needed no run, because an identical sequence had one. batch, queue: it ran or "
            "waited at the same time; window: earlier, if TINYRM_REUSE_S keeps it.",
            "percentunit",
            [Query(f"{rate('tokens_reused_total', 'within')} / scalar{needed}", "{{within}}")],
            is_stacked=True,
            is_share=True,
        ),
        panels.lines(
            "Reused sequences",
            "Sequences a second that needed no run, by model.",
            "ops",
            [Query(rate("sequences_reused_total", "model, within"), "{{model}} {{within}}")],
            is_stacked=True,
        ),
        panels.lines(
            "Tokens per comparison",
            "Mean, of all its sequences. Cost grows with it.",
            "none",
            [Query(f"{rate('tokens_total', kind='real')} / {COMPARISONS}", "tokens")],
        ),
    ]


def seconds() -> list[Panel]:
    each = [
        Query(f"1000 * {rate(name)} / {COMPARISONS}", legend)
        for name, legend in ((RUN, "engine running"), ("process_cpu_seconds_total", "CPU, all processes"))
    ]
    return [
        panels.lines(
            "Price of 1,000 comparisons",
            "Seconds of engine and of CPU for a thousand comparisons. Multiply by the price of a machine's second.",
            "s",
            each,
            width=24,
        ),
    ]
