"""verl: a reward manager that has the responses to a prompt compared with each other, whichever process they are in."""

import asyncio
import inspect
import json
import math
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from functools import partial
from hashlib import sha256
from typing import Any

from tinyrm.chat import to_prompt, to_response
from tinyrm.client import AsyncClient
from tinyrm.client.calls import ScoreOptions
from tinyrm.errors import CallRefused, InvalidInput
from tinyrm.integrations import MAX_RETRIES, TIMEOUT_S, score_alone
from tinyrm.integrations.meeting import Judgement, Meeting, Sample
from tinyrm.markup import strip_special

# Samples that may wait in one of verl's reward workers: less than the calls that Ray lets an actor run at the same time
# (1000), because verl distributes samples at random.
MAX_WAITING_IN_A_WORKER = 800
MAX_WAITING = 1_000_000


class GroupRewardManager:
    """A reward manager of verl 0.9 that compares all responses to a prompt with each other.

    `reward.reward_manager` of verl's config names it: `source=importlib`, `name=GroupRewardManager` and
    `module.path=pkg://tinyrm.integrations.verl_manager`. The keys below `reward.reward_kwargs.tinyrm`:

    base_url: address of the service; by default the variable TINYRM_URL.
    api_key: by default the variable TINYRM_API_KEY.
    timeout_s, group_timeout_s, on_incomplete: as in `Meeting`.
    domains: {data_source: domain}.
    weight: of the reward if `reward.custom_reward_function` adds a score of its own; 1 by default.
    validation_split: the `extra_info.split` of validation data, for trainers without TransferQueue, which knows it.
    All other keys are options of `Client.rewards`.

    verl runs the samples of a group in several processes. They meet in a Ray actor, or in this process without Ray. If
    the model scores responses alone and no option is about groups, each sample gets its score at once. With
    strategy=reference, each is compared with its ground truth at once.

    All else is done by verl's own manager: "dapo" if `reward.reward_kwargs.overlong_buffer_cfg` is there, for its
    penalty, or else "naive". Every sample has the extra keys `tinyrm_reward`, which `algorithm.gdpo_reward_keys` may
    name, and `partial`, 1 if it was not compared with its whole group.
    """

    def __init__(self, config: Any, tokenizer: Any, compute_score: Callable[..., Any] | None, **other: Any) -> None:
        """Take the arguments that verl passes.

        compute_score: the user's function, or verl's rules if there is none; only the former is added.
        """
        from omegaconf import OmegaConf
        from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls

        kwargs = config.reward.get("reward_kwargs") or {}
        options: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(kwargs.get("tinyrm") or {}), resolve=True)
        self._domains: Mapping[str, str] = options.pop("domains", None) or {}
        self._weight = float(options.pop("weight", 1.0))
        self._validation_split = options.pop("validation_split", None)
        base_url = options.pop("base_url", None) or os.environ.get("TINYRM_URL", "http://127.0.0.1:8000")
        api_key = options.pop("api_key", None) or os.environ.get("TINYRM_API_KEY")
        names = {"timeout_s", "group_timeout_s", "on_incomplete"} & options.keys()
        timing: dict[str, Any] = {name: options.pop(name) for name in names}
        self._meeting: dict[str, Any] = {"base_url": base_url, "api_key": api_key, **timing}
        self._options = options
        self._client = AsyncClient(
            base_url, api_key, timeout_s=timing.get("timeout_s", TIMEOUT_S), max_retries=MAX_RETRIES
        )
        rollout = config.actor_rollout_ref.rollout
        self._size, self._validation_size = int(rollout.n), int(rollout.val_kwargs.n)
        self._max_samples = self._size * int(OmegaConf.select(config, "data.train_batch_size") or 0)
        self._workers = int(config.reward.num_workers)
        self._has_queue = bool(OmegaConf.select(config, "transfer_queue.enable"))
        if self._has_queue:
            import transfer_queue

            transfer_queue.init()
        # Domains whose model does not score responses alone.
        self._comparing: set[str | None] = set()
        self._judge: Callable[[Sample], Awaitable[Judgement]] | None = None
        self._own_score = compute_score if config.reward.custom_reward_function.path is not None else None
        self._fields: ContextVar[Mapping[str, Any]] = ContextVar("fields")
        manager = get_reward_manager_cls("dapo" if kwargs.get("overlong_buffer_cfg") is not None else "naive")
        self._manager = manager(config, tokenizer, self._score, **other)

    async def run_single(self, data: Any) -> dict[str, Any]:
        """Return the reward of the last sample of a DataProto, and the extra keys, as verl's managers do.

        Raises InvalidInput, CallFailed, IncompleteGroup.
        """
        self._fields.set(data[-1].non_tensor_batch)
        result: dict[str, Any] = await self._manager.run_single(data)
        return result

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: list[float]) -> Any:
        """Return the tensor of a batch's rewards, as verl's managers do."""
        from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

        return RewardManagerBase.assemble_rm_scores(data, scores)

    async def _score(self, *, solution_str: str, **arguments: Any) -> dict[str, Any]:
        """Be the `compute_score` of verl's manager, for the sample whose fields `run_single` has set."""
        own: Any = {}
        reward = self._reward(self._fields.get(), to_response(strip_special(solution_str)))
        if self._own_score is None:
            judgement = await reward
        else:
            call = partial(self._own_score, solution_str=solution_str, **arguments)
            is_async = inspect.iscoroutinefunction(self._own_score)
            judgement, own = await asyncio.gather(reward, call() if is_async else asyncio.to_thread(call))
        extra = dict(own) if isinstance(own, Mapping) else {"score": own, "acc": own}
        return {
            **extra,
            "score": float(extra.get("score", 0.0)) + self._weight * judgement.reward,
            "tinyrm_reward": judgement.reward,
            "partial": float(judgement.is_partial),
        }

    async def _reward(self, fields: Mapping[str, Any], response: str) -> Judgement:
        missing = [name for name in ("uid", "raw_prompt") if name not in fields]
        if missing:
            raise InvalidInput(f"a sample of verl has no field {missing[0]!r}, only {', '.join(fields)}")
        prompt, options = to_prompt(fields["raw_prompt"]), dict(self._options)
        if domain := self._domains.get(fields.get("data_source", "")):
            options["domain"] = domain
        if options.get("strategy") == "reference":
            options |= {"scale": "unit", "reference": to_response(fields["reward_model"]["ground_truth"])}
            return Judgement((await self._client.rewards(prompt, [response], **options)).rewards[0])
        wants_groups = options.keys() - ScoreOptions.__annotations__.keys() - {"empty"}
        if options.get("domain") not in self._comparing and not wants_groups:
            try:
                return Judgement(await score_alone(self._client, prompt, response, options))
            except CallRefused as error:
                if error.type != "not_pointwise":
                    raise
            self._comparing.add(options.get("domain"))
        session = fields.get("session_id")
        sample_id = None if session is None else int(session)
        size = await self._group_size(fields)
        if self._judge is None:
            self._judge = self._meeting_place()
        return await self._judge(Sample(str(fields["uid"]), size, prompt, response, sample_id, options))

    async def _group_size(self, fields: Mapping[str, Any]) -> int:
        """Return how many samples verl generates for a prompt. Raises InvalidInput if a training has no groups."""
        if await self._is_validation(fields):
            return self._validation_size
        if self._size < 2:
            raise InvalidInput(
                "actor_rollout_ref.rollout.n=1: this model compares the responses to a prompt, and one alone has "
                "nothing to be compared with; set n to 2 or more, or serve a model that scores responses alone"
            )
        return self._size

    async def _is_validation(self, fields: Mapping[str, Any]) -> bool:
        """Return whether the sample is one of validation, of which verl may generate another number for each prompt."""
        if self._size == self._validation_size:
            return False
        if self._validation_split is not None:
            return bool((fields.get("extra_info") or {}).get("split") == self._validation_split)
        if not self._has_queue:
            return False
        import transfer_queue

        # verl keeps a prompt there, by its uid, until its samples have rewards.
        prompts = await transfer_queue.async_kv_list(partition_id="val")
        return str(fields["uid"]) in prompts.get("val", {})

    def _meeting_place(self) -> Callable[[Sample], Awaitable[Judgement]]:
        """Return the function that is called with each sample. Raises InvalidInput if samples could wait for ever."""
        if self._max_samples > self._workers * MAX_WAITING_IN_A_WORKER:
            raise InvalidInput(
                f"reward.num_workers={self._workers} is too small for {self._max_samples} samples in a step: samples "
                "that wait for their group would block those that complete it; set it to at least "
                f"{math.ceil(self._max_samples / MAX_WAITING_IN_A_WORKER)}"
            )
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return Meeting(**self._meeting).judge
        # One for each service, so that two managers with other arguments do not share it.
        arguments = json.dumps(self._meeting, sort_keys=True, default=str)
        actor = (
            ray.remote(Meeting)
            .options(
                name=f"tinyrm-{sha256(arguments.encode()).hexdigest()[:16]}",
                get_if_exists=True,
                num_cpus=0,
                max_concurrency=MAX_WAITING,
                max_restarts=-1,
                max_task_retries=-1,
            )
            .remote(**self._meeting)
        )
        judge: Callable[[Sample], Awaitable[Judgement]] = actor.judge.remote
        return judge
