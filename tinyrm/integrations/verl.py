"""verl: functions for `custom_reward_function`. The reward manager that compares whole groups is in verl_manager.py."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain
from typing import Any

from tinyrm.chat import TextOrTurns, to_prompt, to_response
from tinyrm.client import Client
from tinyrm.integrations import MAX_RETRIES, TIMEOUT_S

ExtraInfo = Mapping[str, Any]

# Groups that compute_score_batch sends at the same time.
CONCURRENCY = 16


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: ExtraInfo | None = None,
    *,
    base_url: str = "http://127.0.0.1:8000",
    api_key: str | None = None,
    timeout_s: float = TIMEOUT_S,
    prompt_key: str = "question",
    domains: Mapping[str, str] | None = None,
    reward_router_address: str | None = None,  # noqa: ARG001  # verl's own model, if it has one
    reward_model_tokenizer: object = None,  # noqa: ARG001
    **options: Any,
) -> float:
    """Return P(the response beats the reference), in [0, 1].

    solution_str: the response.
    ground_truth: the reference, a complete response; every explained response would beat a bare "72".
    base_url: address of the service.
    prompt_key: field of `extra_info` with the prompt, which verl does not pass itself.
    domains: {data_source: domain}.
    options: of `Client.compare`: domain, instruction, swap, model.

    verl fills the keyword arguments from `custom_reward_function.reward_kwargs`.
    """
    prompt = _prompt(extra_info, prompt_key)
    options = _with_domain(options, data_source, domains)
    reply = _client(base_url, api_key, timeout_s).compare(
        to_prompt(prompt), to_response(solution_str), _reference(ground_truth), **options
    )
    return reply.probability_a


def compute_score_batch(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[ExtraInfo | None],
    *,
    base_url: str = "http://127.0.0.1:8000",
    api_key: str | None = None,
    timeout_s: float = TIMEOUT_S,
    prompt_key: str = "question",
    domains: Mapping[str, str] | None = None,
    **options: Any,
) -> list[float]:
    """Return a reward for each response: responses to one prompt are ranked together.

    For the `batch` reward manager of older versions of verl; 0.9 has none.

    options: of `Client.rewards`. With strategy="reference" each response is compared with its ground truth instead, and
        the default scale is "unit": rewards are those of `compute_score`. With any other strategy a group needs two
        responses (`rollout.n`).

    The rows of a group need not be contiguous. The other arguments are those of `compute_score`.
    """
    prompts = [_prompt(info, prompt_key) for info in extra_infos]
    client = _client(base_url, api_key, timeout_s)

    def group_rewards(rows: list[int]) -> list[float]:
        group_options = _with_domain(options, data_sources[rows[0]], domains)
        if group_options.get("strategy") == "reference":
            group_options = {"scale": "unit"} | group_options | {"reference": _reference(ground_truths[rows[0]])}
        responses = [to_response(solution_strs[row]) for row in rows]
        return client.rewards(to_prompt(prompts[rows[0]]), responses, **group_options).rewards

    by_question: dict[str, list[int]] = {}
    for row, question in enumerate(zip(data_sources, prompts, ground_truths, strict=True)):
        by_question.setdefault(repr(question), []).append(row)
    groups = list(by_question.values())
    with ThreadPoolExecutor(CONCURRENCY) as threads:
        scored = list(threads.map(group_rewards, groups))
    by_row = dict(zip(chain.from_iterable(groups), chain.from_iterable(scored), strict=True))
    return [by_row[row] for row in range(len(prompts))]


@lru_cache(maxsize=8)
def _client(base_url: str, api_key: str | None, timeout_s: float) -> Client:
    """Return this process's client of a service; it stays open, since verl calls for each sample, from many threads."""
    return Client(base_url, api_key, timeout_s=timeout_s, max_retries=MAX_RETRIES)


def _prompt(extra_info: ExtraInfo | None, prompt_key: str) -> TextOrTurns:
    prompt: TextOrTurns | None = (extra_info or {}).get(prompt_key)
    if prompt is None:
        raise ValueError(
            f"extra_info has no {prompt_key!r}, only {sorted(extra_info or {})}: set reward_kwargs.prompt_key to the "
            "field that holds the prompt"
        )
    return prompt


def _reference(ground_truth: object) -> str:
    if not isinstance(ground_truth, str):
        raise TypeError(f"ground_truth is {type(ground_truth).__name__}; the reference response must be text")
    return to_response(ground_truth)


def _with_domain(options: dict[str, Any], data_source: str, domains: Mapping[str, str] | None) -> dict[str, Any]:
    domain = (domains or {}).get(data_source)
    return options if domain is None else options | {"domain": domain}
