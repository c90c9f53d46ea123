"""TRL: a reward function for GRPO and its relatives, and a judge of pairs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal

from tinyrm.chat import TextOrTurns, to_prompt, to_response
from tinyrm.client import AsyncClient, Client, CompareItem, ItemError
from tinyrm.errors import CallFailed, CallRefused, InvalidRequest
from tinyrm.integrations import compare_item

RewardFunc = Callable[..., Awaitable[list[float | None]]]
OnFailure = Literal["skip", "raise"]

# Errors that concern the texts of one group. All others (a key, a domain, an option) would concern every group.
ABOUT_TEXTS = ("invalid_text", "body_too_large")

logger = logging.getLogger(__name__)


def reward_func(
    num_generations: int,
    base_url: str = "http://127.0.0.1:8000",
    *,
    api_key: str | None = None,
    timeout_s: float = 30.0,
    columns: Mapping[str, str] | None = None,
    on_failure: OnFailure = "skip",
    **options: Any,
) -> RewardFunc:
    """Return a reward function for `GRPOTrainer(reward_funcs=...)` that ranks each group of completions.

    num_generations: that of the trainer; this many consecutive completions belong to one prompt.
    base_url: address of the service.
    columns: options that differ by row, as {option: dataset column}, such as {"domain": "subject"} or, with
        strategy="reference", {"reference": "answer"}. The first row of a group determines the value.
    on_failure: "skip" logs a warning and returns None for each completion of a group that could not be ranked, so that
        the trainer leaves it out; "raise" stops the training. A refused key, domain or option always stops it. A group
        cannot be ranked if the service is not available, or if a message of it holds no text, such as an image.
    options: of `Client.rewards`: strategy, swap, domain, instruction, model, scale.

    The function can be pickled, so it can be sent to the trainer's worker processes.
    """
    group_options = partial(_group_options, dict(columns or {}), options)
    return partial(
        tinyrm_reward,
        num_generations=num_generations,
        group_options=group_options,
        on_failure=on_failure,
        new_client=partial(AsyncClient, base_url, api_key, timeout_s=timeout_s),
    )


async def tinyrm_reward(
    prompts: Sequence[TextOrTurns],
    completions: Sequence[TextOrTurns],
    *,
    num_generations: int,
    group_options: Callable[[Mapping[str, Any], int], dict[str, Any]],
    new_client: Callable[[], AsyncClient],
    on_failure: OnFailure,
    **dataset: Any,
) -> list[float | None]:
    """Return a reward for each completion; `reward_func` binds the options. TRL names its metrics after this function.

    Each call opens a client: the event loop is the trainer's, and connections must not outlive it.

    Raises ValueError if the batch is not a number of whole groups, each of one prompt.
    """
    starts = range(0, len(prompts), num_generations)
    if any(prompts[i : i + num_generations] != [prompts[i]] * num_generations for i in starts):
        raise ValueError(
            f"{len(prompts)} completions are not groups of {num_generations} to one prompt each: reward_func needs the "
            "num_generations of the trainer, in evaluation too, and each process's batch (per_device_train_batch_size "
            "* steps_per_generation) must be a multiple of it"
        )
    async with new_client() as client:
        groups = await asyncio.gather(
            *(
                _group_rewards(
                    client, prompts[i], completions[i : i + num_generations], group_options(dataset, i), on_failure
                )
                for i in starts
            )
        )
    return list(chain.from_iterable(groups))


def _group_options(
    columns: dict[str, str], fixed: dict[str, Any], dataset: Mapping[str, Any], row: int
) -> dict[str, Any]:
    missing = [column for column in columns.values() if column not in dataset]
    if missing:
        raise ValueError(f"the dataset has no column {missing[0]!r}; columns={columns}")
    return fixed | {option: dataset[column][row] for option, column in columns.items()}


async def _group_rewards(
    client: AsyncClient,
    prompt: TextOrTurns,
    completions: Sequence[TextOrTurns],
    options: dict[str, Any],
    on_failure: OnFailure,
) -> list[float | None]:
    try:
        texts = to_prompt(prompt), [to_response(completion) for completion in completions]
        if "reference" in options:
            options["reference"] = to_response(options["reference"])
    except InvalidRequest as error:
        return _no_rewards(error, len(completions), on_failure)
    try:
        scored = await client.rewards(*texts, **options)
    except CallFailed as error:
        if isinstance(error, CallRefused) and error.type not in ABOUT_TEXTS:
            raise
        return _no_rewards(error, len(completions), on_failure)
    return list(scored.rewards)


def _no_rewards(error: CallFailed | InvalidRequest, completions: int, on_failure: OnFailure) -> list[float | None]:
    if on_failure == "raise":
        raise error
    logger.warning("%d completions have no reward: %s: %s", completions, error.type, error)
    return [None] * completions


class PairwiseJudge:
    """A judge of two completions to each prompt, with the methods of TRL's `BasePairwiseJudge`.

    base_url: address of the service.
    options: of `Client.compare`: domain, instruction, model.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        **options: Any,
    ) -> None:
        self._client = Client(base_url, api_key, timeout_s=timeout_s)
        self._options = options | {"swap": "on"}

    def judge(
        self,
        prompts: Sequence[TextOrTurns],
        completions: Sequence[Sequence[TextOrTurns]],
        shuffle_order: bool = True,  # noqa: ARG002  # TRL's; both orders are scored, which needs no shuffling
    ) -> list[int]:
        """Return the index of the better completion to each prompt; -1 if they could not be compared.

        Raises CallFailed.
        """
        items = [self._item(prompt, pair) for prompt, pair in zip(prompts, completions, strict=True)]
        results = iter(self._client.compare_many([item for item in items if not isinstance(item, InvalidRequest)]))
        verdicts = []
        for item in items:
            result = item if isinstance(item, InvalidRequest) else next(results)
            if isinstance(result, InvalidRequest | ItemError):
                reason = result.message if isinstance(result, ItemError) else result
                logger.warning("two completions have no verdict: %s: %s", result.type, reason)
                verdicts.append(-1)
            else:
                verdicts.append(int(result.probability_b > result.probability_a))
        return verdicts

    def _item(self, prompt: TextOrTurns, completions: Sequence[TextOrTurns]) -> CompareItem | InvalidRequest:
        """Return a comparison, or why there is none."""
        if len(completions) != 2:
            return InvalidRequest(f"{len(completions)} completions to one prompt; a judge of pairs compares 2")
        try:
            return compare_item(prompt, completions[0], completions[1], self._options)
        except InvalidRequest as error:
            return error
