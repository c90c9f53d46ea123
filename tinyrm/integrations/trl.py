"""TRL: a reward function for GRPO, RLOO and Online DPO."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from tinyrm.chat import TextOrTurns, to_prompt, to_response
from tinyrm.client import Client
from tinyrm.errors import CallFailed, CallRefused, InvalidRequest
from tinyrm.integrations import MAX_RETRIES, TIMEOUT_S

Rewards = list[float | None]
OnFailure = Literal["skip", "raise"]

# Groups that are sent at the same time.
MAX_THREADS = 128
# Errors that concern the texts of one group. All others (a key, a domain, an option) would concern every group.
ABOUT_TEXTS = ("invalid_text", "body_too_large")

logger = logging.getLogger(__name__)


def reward_func(
    base_url: str = "http://127.0.0.1:8000",
    *,
    api_key: str | None = None,
    timeout_s: float = TIMEOUT_S,
    columns: Mapping[str, str] | None = None,
    on_failure: OnFailure = "skip",
    **options: Any,
) -> "GroupReward":
    """Return a reward function for `GRPOTrainer(reward_funcs=...)` that ranks the completions to each prompt.

    It is for RLOOTrainer and OnlineDPOTrainer, too: it is synchronous, and completions belong together if their prompts
    are equal, wherever they stand and however many they are.

    base_url: address of the service.
    timeout_s: limit of each group. Until then, a service that is busy or restarts is called again.
    columns: options that differ by row, as {option: dataset column}, such as {"domain": "subject"} or, with
        strategy="reference", {"reference": "answer"}.
    on_failure: "skip" logs a warning and returns None for each completion of a group that could not be ranked, so that
        the trainer leaves it out; "raise" stops the training. A refused key, domain or option always stops it. A group
        cannot be ranked if the service is not available, or if a message of it holds no text, such as an image.
    options: of `Client.rewards`: strategy, swap, domain, instruction, model, scale.

    Raises InvalidInput for an address that cannot be used.
    """
    client = Client(base_url, api_key, timeout_s=timeout_s, max_retries=MAX_RETRIES, max_connections=MAX_THREADS)
    return GroupReward(client, dict(columns or {}), options, on_failure)


@dataclass(frozen=True)
class GroupReward:
    """A reward function, as `reward_func` makes it. It can be pickled, so the trainer can send it to its workers."""

    client: Client = field(repr=False)
    columns: Mapping[str, str]
    options: Mapping[str, Any]
    on_failure: OnFailure

    # TRL calls its metrics by this name.
    __name__ = "tinyrm_reward"

    def __call__(
        self,
        prompts: Sequence[TextOrTurns],
        completions: Sequence[TextOrTurns],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        **dataset: Any,
    ) -> Rewards:
        """Return a reward for each completion.

        A completion that is alone with its prompt has no other to be compared with, and gets None, except with a
        reference and scale="unit".

        log_metric: the trainer's, if it has one; gets the size of the smallest group.
        dataset: columns, by name.

        Raises ValueError if the dataset lacks a column.
        """
        missing = [column for column in self.columns.values() if column not in dataset]
        if missing:
            raise ValueError(f"the dataset has no column {missing[0]!r}; columns={dict(self.columns)}")
        options = [
            {**self.options, **{option: dataset[column][row] for option, column in self.columns.items()}}
            for row in range(len(prompts))
        ]
        groups: dict[str, list[int]] = {}
        for row, prompt in enumerate(prompts):
            groups.setdefault(repr((prompt, options[row])), []).append(row)
        if log_metric and groups:
            log_metric("tinyrm_smallest_group", float(min(map(len, groups.values()))))

        def group_rewards(rows: list[int]) -> Rewards:
            return self._group_rewards(prompts[rows[0]], [completions[row] for row in rows], options[rows[0]])

        rewards: Rewards = [None] * len(prompts)
        with ThreadPoolExecutor(min(MAX_THREADS, max(1, len(groups)))) as threads:
            for rows, scored in zip(groups.values(), threads.map(group_rewards, groups.values()), strict=True):
                for row, reward in zip(rows, scored, strict=True):
                    rewards[row] = reward
        return rewards

    def _group_rewards(
        self, prompt: TextOrTurns, completions: Sequence[TextOrTurns], options: dict[str, Any]
    ) -> Rewards:
        if len(completions) == 1 and (options.get("strategy"), options.get("scale")) != ("reference", "unit"):
            logger.warning("a completion has no reward: there is no other one to its prompt")
            return [None]
        try:
            texts = to_prompt(prompt), [to_response(completion) for completion in completions]
            if "reference" in options:
                options = {**options, "reference": to_response(options["reference"])}
            return list(self.client.rewards(*texts, **options).rewards)
        except (CallFailed, InvalidRequest) as error:
            concerns_all = isinstance(error, CallRefused) and error.type not in ABOUT_TEXTS
            if concerns_all or self.on_failure == "raise":
                raise
            logger.warning("%d completions have no reward: %s: %s", len(completions), error.type, error)
            return [None] * len(completions)
