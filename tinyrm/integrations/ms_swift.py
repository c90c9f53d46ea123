"""ms-swift: a reward function for GRPO, registered by a plugin file."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from tinyrm.integrations.trl import GroupReward, Rewards, reward_func

logger = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, Any]]


def orm(base_url: str = "http://127.0.0.1:8000", **options: Any) -> Callable[..., "TinyRM"]:
    """Return an entry for `swift.rewards.orms`, from which ms-swift makes its reward function.

        from swift.rewards import orms
        from tinyrm.integrations.ms_swift import orm

        orms["tinyrm"] = orm("http://127.0.0.1:8000", domain="reasoning")

    options: of `tinyrm.integrations.trl.reward_func`, except that `on_failure` is "raise" by default: ms-swift counts a
        missing reward as 0.

    Raises InvalidInput for an address that cannot be used.
    """
    reward = reward_func(base_url, **{"on_failure": "raise", **options})

    def make(args: Any = None) -> "TinyRM":
        return TinyRM(reward, getattr(args, "num_generations", None), getattr(args, "num_generations_eval", None))

    return make


@dataclass(frozen=True)
class TinyRM:
    """A reward function in the form of ms-swift's ORM. The class has the name that ms-swift's logs show.

    num_generations, num_generations_eval: of the trainer's arguments; groups of other sizes are reported.
    """

    reward: GroupReward
    num_generations: int | None = None
    num_generations_eval: int | None = None

    def __call__(self, _: Sequence[str], *, messages: Sequence[Messages], **rows: Any) -> Rewards:
        """Return a reward for each completion, compared with the others to its prompt.

        messages: the dialogues, from the prompt to the completion, whose last turns are also the first argument.
        rows: columns of the dataset and of the trainer, by name. Equal `prompt_id` are one group.
        """
        ids = rows.get("prompt_id") or [""] * len(messages)
        groups: dict[str, list[int]] = {}
        for row, (name, dialogue) in enumerate(zip(ids, messages, strict=True)):
            groups.setdefault(name or repr(dialogue[:-1]), []).append(row)
        self._report({len(group) for group in groups.values()})
        prompts: list[Messages] = [()] * len(messages)
        for group in groups.values():
            # Later turns of the policy differ within the group, and are part of the response.
            turns = zip(*(messages[row][:-1] for row in group), strict=False)
            shared = len(list(takewhile(lambda turn: all(other == turn[0] for other in turn), turns)))
            for row in group:
                prompts[row] = messages[row][:shared]
        responses = [dialogue[len(prompt) :] for prompt, dialogue in zip(prompts, messages, strict=True)]
        columns = {name: rows[name] for name in self.reward.columns.values() if name in rows}
        return self.reward(prompts, responses, **columns)

    def _report(self, sizes: set[int]) -> None:
        expected = [size for size in (self.num_generations, self.num_generations_eval) if size]
        for size in sorted(sizes):
            if expected and all(size % other for other in expected):
                logger.warning(
                    "a group has %d completions, num_generations is %d: choose per_device_train_batch_size and "
                    "steps_per_generation so that each process holds whole groups",
                    size,
                    expected[0],
                )
