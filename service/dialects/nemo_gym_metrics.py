"""What NeMo-Gym computes from the rewards of a whole collection, as its own resources servers do it.

Numbers as `nemo_gym.reward_profile.compute_aggregate_metrics` of NeMo-Gym 0.4 returns them, a test compares both.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from service.dialects.bodies import DialectBody

TASK, ROLLOUT = "_ng_task_index", "_ng_rollout_index"
MAX_NUMBER = 1e100


class Rollout(DialectBody):
    """The reply of /verify to one rollout, without its texts. Every number in it is aggregated."""

    model_config = ConfigDict(extra="allow")

    task_index: int = Field(default=0, alias="_ng_task_index")
    rollout_index: int = Field(default=0, alias="_ng_rollout_index")
    response: dict[str, Any] = Field(default={})

    @property
    def own(self) -> dict[str, float]:
        return numbers(self.model_extra or {})

    @property
    def usage(self) -> dict[str, float]:
        usage = self.response.get("usage")
        return numbers(usage) if isinstance(usage, dict) else {}


class AggregateRequest(DialectBody):
    """The rollouts of a collection, of any number of tasks."""

    verify_responses: list[Rollout] = Field(fail_fast=True)


class AggregateReply(BaseModel):
    """Means, extremes, medians and standard deviations, named `mean/reward` and so on.

    group_level_metrics: of each task.
    agent_metrics: of all rollouts.
    key_metrics: the means of these.
    """

    group_level_metrics: list[dict[str, Any]]
    agent_metrics: dict[str, float]
    key_metrics: dict[str, float]


def aggregate(rollouts: Sequence[Rollout]) -> AggregateReply:
    groups: dict[int, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.task_index].append(rollout)
    overall = describe(rollouts)
    return AggregateReply(
        group_level_metrics=[describe_task(task, groups[task]) for task in sorted(groups)],
        agent_metrics=overall,
        key_metrics={name: value for name, value in overall.items() if name.startswith("mean/")},
    )


def describe_task(task: int, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    ordered = sorted(rollouts, key=lambda rollout: rollout.rollout_index)
    return {
        TASK: task,
        **describe(rollouts),
        "sample": {"agent_ref": {"name": "agent"}},
        "num_rollouts": len(rollouts),
        "expected_num_rollouts": len(rollouts),
        "missing_num_rollouts": 0,
        "reward_profile_completion_pct": 100.0,
        "rollout_infos": [
            {
                "rollout_id": f"{task}:{one.rollout_index}",
                TASK: task,
                ROLLOUT: one.rollout_index,
                **one.usage,
                **one.own,
            }
            for one in ordered
        ],
    }


def describe(rollouts: Iterable[Rollout]) -> dict[str, float]:
    """Return the statistics of every number, over the rollouts that have it. A single rollout deviates by 0."""
    rows = [rollout.own | rollout.usage for rollout in rollouts]
    columns: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            columns[name].append(value)
    deviations = {name: statistics.stdev(values) for name, values in columns.items() if len(values) > 1}
    if not deviations:
        deviations = {name: 0.0 for name, values in columns.items() if len(values) == len(rows)}
    described = {
        "mean": {name: statistics.fmean(values) for name, values in columns.items()},
        "max": {name: max(values) for name, values in columns.items()},
        "min": {name: min(values) for name, values in columns.items()},
        "median": {name: statistics.median(values) for name, values in columns.items()},
        "std": deviations,
    }
    return {f"{what}/{name}": float(value) for what, values in described.items() for name, value in values.items()}


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return what can be averaged: true and false count as 1 and 0; NaN and numbers whose square overflows do not."""
    found = {name: int(value) if isinstance(value, bool) else value for name, value in values.items()}
    return {name: value for name, value in found.items() if isinstance(value, int | float) and abs(value) < MAX_NUMBER}
