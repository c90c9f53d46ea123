"""The dashboard of judgement: what the verdicts look like. A change of the model or of its input is visible here."""

from grafana_foundation_sdk.models import dashboard as models

from tools.dashboards import panels
from tools.dashboards.bounds import Bounds
from tools.dashboards.panels import RED, YELLOW, Panel
from tools.dashboards.queries import COMPARISONS, Query, increase, quantile, quantiles, rate

FIRST, MARGIN, SWAPS, TRUNCATED = (
    "first_position_margin",
    "margin",
    "swapped_comparisons_total",
    "truncated_comparisons_total",
)


def dashboard(bounds: Bounds) -> models.Dashboard:
    text = "What the verdicts look like. They drift when the model or its input changes: both are visible here."
    return panels.board(
        "judgement", "Judgement", text, [*numbers(bounds), *preference(), *margins(), *order(bounds), *texts()]
    )


def numbers(bounds: Bounds) -> list[Panel]:
    return [
        panels.number(
            "A preferred",
            "Share of the verdicts for A. Far from half is not wrong if callers put the better one "
            "first, but a change means that something has changed.",
            "percentunit",
            Query(f"{rate('preferences_total', preferred='a')} / {rate('preferences_total')}", "a"),
        ),
        panels.number(
            "Orders disagree",
            "Share of the comparisons in both orders whose orders prefer different responses. The "
            "result is the mean of both, so it is near a tie there. No data: the model has no order, as one of sets.",
            "percentunit",
            Query(f"{rate(SWAPS, agree='false')} / {rate(SWAPS)}", "disagree"),
            bounds=((bounds.disagreement_share / 2, YELLOW), (bounds.disagreement_share, RED)),
        ),
        panels.number(
            "First position adds",
            "Log-odds that a response gains from the first position, at the median. Both "
            "orders together cancel it; with swap off it is in every result. No data: the model has no order.",
            "none",
            Query(quantile(0.5, FIRST), "median"),
            bounds=((bounds.first_position / 2, YELLOW), (bounds.first_position, RED)),
            alert="TinyRMPositionBias",
        ),
        panels.number(
            "Truncated",
            "Share of the comparisons that were truncated because they exceed the model's maximum length.",
            "percentunit",
            Query(f"{rate(TRUNCATED)} / {COMPARISONS}", "truncated"),
            bounds=((bounds.truncated_share / 5, YELLOW), (bounds.truncated_share, RED)),
            alert="TinyRMTruncation",
        ),
    ]


def preference() -> list[Panel]:
    verdicts = f"{rate('preferences_total', 'preferred')} / scalar({rate('preferences_total')})"
    sure = " + ".join(
        [f"({rate(f'{MARGIN}_count')} - {rate(f'{MARGIN}_bucket', le='2.0')})", rate(f"{MARGIN}_bucket", le="-2.0")]
    )
    return [
        panels.lines(
            "Verdicts",
            "Shares of A, B and tie.",
            "percentunit",
            [Query(verdicts, "{{preferred}}")],
            is_stacked=True,
            is_share=True,
        ),
        panels.lines(
            "Sure verdicts",
            "Share of the verdicts with a margin above 2 (88 %) on either side. A model that becomes "
            "sure of everything, or of nothing, is not the model that was evaluated.",
            "percentunit",
            [Query(f"({sure}) / {rate(f'{MARGIN}_count')}", "sure")],
            is_share=True,
        ),
    ]


def margins() -> list[Panel]:
    return [
        panels.heat(
            "Margins, distribution",
            "Log-odds that A is better: 0 is a tie, 2 is 88 %.",
            "none",
            Query(increase(f"{MARGIN}_bucket", "le"), "{{le}}"),
        ),
        panels.heat(
            "Scores of single responses, distribution",
            "Standard deviations above the mean of held-out responses, from a model that reads one response.",
            "none",
            Query(increase("score_bucket", "le"), "{{le}}"),
        ),
        panels.lines(
            "Margins",
            "Log-odds that A is better. The quantiles are centred at 0 if the order of responses is random.",
            "none",
            quantiles(MARGIN, 0.05, 0.25, 0.5, 0.75, 0.95),
            is_signed=True,
        ),
    ]


def order(bounds: Bounds) -> list[Panel]:
    favoured = f"1 - {rate(f'{FIRST}_bucket', le='0.0')} / {rate(f'{FIRST}_count')}"
    both = f"{rate(SWAPS)} / {COMPARISONS}"
    return [
        panels.lines(
            "First position adds",
            "Log-odds that a response gains from the first position, for comparisons in both orders. 0 is fair. "
            "No data: the model has no order.",
            "none",
            quantiles(FIRST, 0.1, 0.5, 0.9),
            bounds=((bounds.first_position, RED),),
            is_signed=True,
            alert="TinyRMPositionBiasDrift",
        ),
        panels.lines(
            "Order",
            "first favoured: the response in the first position gained from it; half is fair. disagree: "
            "the orders prefer different responses. both orders: swap on, or auto and not sure. A model of sets or of "
            "single responses has no order.",
            "percentunit",
            [
                Query(favoured, "first favoured"),
                Query(f"{rate(SWAPS, agree='false')} / {rate(SWAPS)}", "disagree"),
                Query(both, "both orders"),
            ],
            is_share=True,
        ),
    ]


def texts() -> list[Panel]:
    return [
        panels.lines(
            "Truncated tokens",
            "Per comparison, by text. The model did not see them: raise its max_tokens, or shorten the prompts.",
            "none",
            [Query(f"{rate('truncated_tokens_total', 'text')} / scalar({COMPARISONS})", "{{text}}")],
            is_stacked=True,
            alert="TinyRMTruncation",
        ),
        panels.lines(
            "Texts with special tokens",
            "Texts a second that contain [MASK] or another special token. They stay "
            "text and have no effect; many of them may be an attack.",
            "ops",
            [Query(rate("special_token_texts_total"), "texts")],
            width=24,
        ),
    ]
