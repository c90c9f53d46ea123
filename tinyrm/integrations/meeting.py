"""The place where samples of a group meet that arrive one by one, from several processes of a trainer."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tinyrm.client import AsyncClient, Prompt
from tinyrm.errors import IncompleteGroup
from tinyrm.integrations import MAX_RETRIES, TIMEOUT_S

OnIncomplete = Literal["partial", "raise"]

# Groups that are kept after they were judged, for samples of theirs that still come.
MAX_JUDGED = 4096
MAX_CONNECTIONS = 256
# A trainer that pads a batch sends some of its samples twice, at the same time as the others. If two responses of a
# complete group are equal, one may be such a copy, and another sample still on its way, unless none comes for so long.
COPIES_ARRIVE_WITHIN_S = 3.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sample:
    """A response, with what identifies its group.

    group: the same for all samples of a prompt in one step, and for no others.
    size: how many of them there are.
    id: distinguishes the samples of a group; None if the trainer has no such number.
    options: of `Client.rewards`; those of the first sample of a group count.
    """

    group: str
    size: int
    prompt: Prompt
    response: str
    id: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A reward.

    is_partial: whether samples of the group were missing.
    """

    reward: float
    is_partial: bool = False


@dataclass(slots=True, eq=False)
class _Group:
    """The samples that came so far; once closed, the responses of those that belong to it."""

    samples: list[Sample] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    is_closed: bool = False
    responses: list[str] = field(default_factory=list)

    @property
    def has_ids(self) -> bool:
        return all(sample.id is not None for sample in self.samples)

    @property
    def is_complete(self) -> bool:
        count = len({sample.id for sample in self.samples}) if self.has_ids else len(self.samples)
        return bool(self.samples) and count >= self.samples[0].size

    def close(self) -> None:
        """Decide which samples belong to the group: all but the copies beyond its size."""
        self.is_closed = True
        excess = len(self.samples) - self.samples[0].size
        seen: set[int | str | None] = set()
        for sample in self.samples:
            identity = sample.id if self.has_ids else sample.response
            if excess > 0 and identity in seen:
                excess -= 1
                continue
            seen.add(identity)
            self.responses.append(sample.response)


class Meeting:
    """Compares the samples of a group when all of them have come. Belongs to one event loop.

    base_url: address of the service.
    timeout_s: limit of the call for a group. Until then, a service that is busy or restarts is called again.
    group_timeout_s: how long a group waits for its next sample.
    on_incomplete: what the samples get whose group is not complete by then: "partial", rewards among those that have
        come, or 0 for one alone; "raise", an error.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        group_timeout_s: float = 1800.0,
        on_incomplete: OnIncomplete = "partial",
    ) -> None:
        self._client = AsyncClient(
            base_url, api_key, timeout_s=timeout_s, max_retries=MAX_RETRIES, max_connections=MAX_CONNECTIONS
        )
        self._group_timeout_s, self._on_incomplete = group_timeout_s, on_incomplete
        self._groups: OrderedDict[str, tuple[_Group, asyncio.Task[dict[str, Judgement]]]] = OrderedDict()

    async def judge(self, sample: Sample) -> Judgement:
        """Return the reward of a sample when all of its group have come, or the time is up.

        A sample that comes after its group was judged gets the reward of its equal there, or is compared with the whole
        group. A sample that is a group of its own gets 0 at once, as partial.

        Raises CallFailed, IncompleteGroup.
        """
        if sample.size < 2:
            return Judgement(0.0, is_partial=True)
        if sample.group not in self._groups:
            new = _Group()
            self._groups[sample.group] = new, asyncio.create_task(self._judge_when_complete(new))
            self._forget_oldest()
        group, judging = self._groups[sample.group]
        if not group.is_closed:
            group.samples.append(sample)
            group.news.set()
        # The other samples of the group still wait if the caller of this one gives up.
        rewards = await asyncio.shield(judging)
        if sample.response in rewards:
            return rewards[sample.response]
        responses = [*group.responses, sample.response]
        reply = await self._client.rewards(sample.prompt, responses, **dict(sample.options))
        return Judgement(reply.rewards[-1], is_partial=len(responses) < sample.size)

    async def _judge_when_complete(self, group: _Group) -> dict[str, Judgement]:
        while patience_s := self._patience_s(group):
            group.news.clear()
            try:
                await asyncio.wait_for(group.news.wait(), patience_s)
            except TimeoutError:
                break
        group.close()
        first, count = group.samples[0], len(group.responses)
        is_partial = count < first.size
        if is_partial:
            message = f"{count} of the {first.size} samples of a group came within {self._group_timeout_s:g} s"
            if self._on_incomplete == "raise":
                raise IncompleteGroup(message)
            logger.warning("incomplete group: %s; its rewards are partial", message)
        if count == 1:
            return {first.response: Judgement(0.0, is_partial=True)}
        reply = await self._client.rewards(first.prompt, group.responses, **dict(first.options))
        judgements = [Judgement(reward, is_partial) for reward in reply.rewards]
        return dict(zip(group.responses, judgements, strict=True))

    def _patience_s(self, group: _Group) -> float:
        """Return how long to wait for another sample; 0 if the group is complete for certain."""
        if not group.is_complete:
            return self._group_timeout_s
        has_equal = len({sample.response for sample in group.samples}) < len(group.samples)
        return COPIES_ARRIVE_WITHIN_S if has_equal and not group.has_ids else 0.0

    def _forget_oldest(self) -> None:
        while len(self._groups) > MAX_JUDGED and next(iter(self._groups.values()))[0].is_closed:
            self._groups.popitem(last=False)
