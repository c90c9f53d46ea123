"""What the model says. A model, or what it is asked, that changes shows here before anybody complains."""

from grafana_foundation_sdk.models import dashboard as models

from tools.dashboards import panels
from tools.dashboards.bounds import DISAGREEMENT_SHARE, FIRST_POSITION, TRUNCATED_SHARE
from tools.dashboards.panels import RED, YELLOW, Panel
from tools.dashboards.queries import COMPARISONS, Query, increase, quantile, quantiles, rate

FIRST, MARGIN, SWAPS, CUT = (
    "first_position_margin", "margin", "swapped_comparisons_total", "truncated_comparisons_total",
)  # fmt: skip


def dashboard() -> models.Dashboard:
    text = "What the model says. Its judgement drifts when it, or what it is asked, changes: both are seen here."
    return panels.board("judgement", "Judgement", text, [*numbers(), *preference(), *margins(), *order(), *texts()])


def numbers() -> list[Panel]:
    return [
        panels.number(
            "A preferred", "Share of the verdicts for A. Far from half is not wrong if callers put the better one "
            "first, but a change of it is a change of something.", "percentunit",
            Query(f"{rate('preferences_total', preferred='a')} / {rate('preferences_total')}", "a"),
        ),
        panels.number(
            "Orders disagree", "Share of the comparisons read in both orders whose orders name different winners. The "
            "answer is the mean of both, so it is near a tie there.", "percentunit",
            Query(f"{rate(SWAPS, agree='false')} / {rate(SWAPS)}", "disagree"),
            bounds=((DISAGREEMENT_SHARE / 2, YELLOW), (DISAGREEMENT_SHARE, RED)),
        ),
        panels.number(
            "Standing first adds", "Log-odds that a response gains by standing first, at the median. Reading both "
            "orders takes it out; with swap off it is in every answer.", "none",
            Query(quantile(0.5, FIRST), "median"), bounds=((FIRST_POSITION / 2, YELLOW), (FIRST_POSITION, RED)),
        ),
        panels.number(
            "Cut to fit", "Share of the comparisons of which something was cut, since they were longer than the model "
            "reads.", "percentunit", Query(f"{rate(CUT)} / {COMPARISONS}", "cut"),
            bounds=((TRUNCATED_SHARE / 5, YELLOW), (TRUNCATED_SHARE, RED)),
        ),
    ]  # fmt: skip


def preference() -> list[Panel]:
    verdicts = f"{rate('preferences_total', 'preferred')} / scalar({rate('preferences_total')})"
    sure = " + ".join(
        [f"({rate(f'{MARGIN}_count')} - {rate(f'{MARGIN}_bucket', le='2.0')})", rate(f"{MARGIN}_bucket", le="-2.0")]
    )
    return [
        panels.lines("Verdicts", "Shares of A, B and tie.", "percentunit", [Query(verdicts, "{{preferred}}")],
                     is_stacked=True, is_share=True),
        panels.lines(
            "Sure verdicts", "Share of the verdicts with a margin above 2 (88 %) on either side. A model that grows "
            "sure of everything, or of nothing, is not the model that was measured.", "percentunit",
            [Query(f"({sure}) / {rate(f'{MARGIN}_count')}", "sure")], is_share=True,
        ),
    ]  # fmt: skip


def margins() -> list[Panel]:
    return [
        panels.heat("Margins, distribution", "Log-odds that A is better: 0 is a tie, 2 is 88 %.", "none",
                    Query(increase(f"{MARGIN}_bucket", "le"), "{{le}}")),
        panels.lines(
            "Margins", "Log-odds that A is better. The quantiles lie around 0 if callers put responses in no order.",
            "none", quantiles(MARGIN, 0.05, 0.25, 0.5, 0.75, 0.95), is_signed=True,
        ),
    ]  # fmt: skip


def order() -> list[Panel]:
    favoured = f"1 - {rate(f'{FIRST}_bucket', le='0.0')} / {rate(f'{FIRST}_count')}"
    both = f"{rate(SWAPS)} / {COMPARISONS}"
    return [
        panels.lines(
            "Standing first adds", "Log-odds that a response gains by standing first, of comparisons read in both "
            "orders. 0 is fair.", "none", quantiles(FIRST, 0.1, 0.5, 0.9), bounds=((FIRST_POSITION, RED),),
            is_signed=True,
        ),
        panels.lines(
            "Order of reading", "favoured: the first response gained by standing first; half is fair. disagree: the "
            "orders name different winners. both read: swap on, or auto and not sure.", "percentunit",
            [Query(favoured, "first favoured"), Query(f"{rate(SWAPS, agree='false')} / {rate(SWAPS)}", "disagree"),
             Query(both, "both read")], is_share=True,
        ),
    ]  # fmt: skip


def texts() -> list[Panel]:
    return [
        panels.lines(
            "Tokens cut", "Per comparison, by text. Cut tokens were not judged: raise the model's max_tokens, or "
            "shorten the prompts.", "none",
            [Query(f"{rate('truncated_tokens_total', 'text')} / scalar({COMPARISONS})", "{{text}}")], is_stacked=True,
        ),
        panels.lines(
            "Texts with special tokens", "Texts a second that write out [MASK] and the like. They stay text and move "
            "nothing; many of them mean that somebody tries.", "ops",
            [Query(rate("special_token_texts_total"), "texts")],
        ),
    ]  # fmt: skip
