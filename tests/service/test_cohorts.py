"""Test which samples are judged together, when, and what happens to the others."""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.scoring import groups
from service.scoring.group_watch import Pace
from service.scoring.groups import CohortLimits, CohortRules, Cohorts
from service.scoring.ranking import GroupScore
from tests.support.virtual_time import run_in_virtual_time
from tinyrm.errors import EngineFailed, IncompleteGroup, Overloaded, ShuttingDown

# Long enough for everything that does not wait for it.
NEVER_S = 60.0
SOON_S = 0.05


@dataclass
class Seen:
    """Record what the metrics observe."""

    open_cohorts: int = 0
    samples: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    shed: Counter[str] = field(default_factory=Counter)

    def observe_cohorts(self, open_cohorts: int, waiting_samples: int) -> None:
        self.open_cohorts, self.samples = open_cohorts, waiting_samples

    def observe_cohort_end(self, reason: str) -> None:
        self.ends[reason] += 1

    def observe_shed(self, reason: str) -> None:
        self.shed[reason] += 1


@dataclass
class Bench:
    """Cohorts of texts with a judge that ranks by length and records which texts it saw together."""

    timeout_s: float = NEVER_S
    max_open: int = 100
    max_bytes: int = 10_000
    max_wait_s: float = math.inf
    scores_partial: bool = True
    answers_copies: bool = False
    now_s: float = 0.0
    judged: list[list[str]] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)
    judge: Callable[[Sequence[str]], Awaitable[Sequence[GroupScore]]] | None = None

    def __post_init__(self) -> None:
        limits = CohortLimits(self.timeout_s, self.max_open, self.max_bytes, self.max_wait_s)
        self.cohorts = Cohorts[str](self.judge or self.by_length, limits, self.seen, lambda: self.now_s)

    async def by_length(self, samples: Sequence[str]) -> list[GroupScore]:
        self.judged.append(list(samples))
        mean = sum(map(len, samples)) / len(samples)
        return [GroupScore(len(sample) - mean, len(sample) / 100) for sample in samples]

    def join(self, sample: str, key: str = "q", size: int = 3, source: str = "slime") -> "asyncio.Task[GroupScore]":
        rules = CohortRules(size, 1.0, source, scores_partial=self.scores_partial, answers_copies=self.answers_copies)
        return asyncio.create_task(self.cohorts.join(key, sample, rules, size_bytes=len(sample), admit=lambda: None))


def run(test: Coroutine[Any, Any, None]) -> None:
    run_in_virtual_time(asyncio.wait_for(test, 2 * NEVER_S))


async def settle() -> None:
    """Let everything that is ready run."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_full_cohort_is_judged_at_once_and_each_gets_its_own_place() -> None:
    async def test() -> None:
        bench = Bench()
        tasks = [bench.join("x" * n) for n in (1, 2, 6)]
        assert await asyncio.gather(*tasks) == [GroupScore(-2, 0.01), GroupScore(-1, 0.02), GroupScore(3, 0.06)]
        assert bench.judged == [["x", "xx", "xxxxxx"]]
        assert (bench.seen.open_cohorts, bench.seen.samples) == (0, 0)
        assert bench.seen.ends == {"full": 1}

    run(test())


def test_groups_are_judged_separately() -> None:
    async def test() -> None:
        bench = Bench()
        keys = ["a", "b", "c"] * 4
        await asyncio.gather(*(bench.join(f"{key}{n}", key, size=4) for n, key in enumerate(keys)))
        assert sorted({sample[0] for sample in group}.pop() for group in bench.judged) == ["a", "b", "c"]
        assert all(len({sample[0] for sample in group}) == 1 for group in bench.judged)

    run(test())


def test_equal_samples_count_separately_and_a_surplus_begins_another_cohort() -> None:
    async def test() -> None:
        bench = Bench(timeout_s=SOON_S)
        placed = await asyncio.gather(*(bench.join("same") for _ in range(5)))
        assert [len(group) for group in bench.judged] == [3, 2]
        assert [one.partial for one in placed] == [False] * 3 + [True] * 2

    run(test())


def test_groups_of_two_sizes_do_not_mix() -> None:
    async def test() -> None:
        bench = Bench(timeout_s=SOON_S)
        await asyncio.gather(bench.join("a", size=2), bench.join("b", size=3), bench.join("c", size=2))
        assert bench.judged == [["a", "c"]]

    run(test())


def test_at_the_deadline_the_samples_so_far_are_judged_as_partial() -> None:
    async def test() -> None:
        bench = Bench(timeout_s=SOON_S)
        placed = await asyncio.gather(bench.join("x"), bench.join("xxx"))
        assert placed == [GroupScore(-1, 0.01, partial=True), GroupScore(1, 0.03, partial=True)]
        assert bench.seen.ends == {"deadline": 1}

    run(test())


def test_a_single_sample_is_average_and_costs_no_comparison() -> None:
    async def test() -> None:
        bench = Bench(timeout_s=SOON_S)
        assert await bench.join("x") == GroupScore(0.0, 0.5, partial=True)
        assert bench.judged == []

    run(test())


def test_a_cancelled_sample_is_not_judged_and_its_place_is_free() -> None:
    async def test() -> None:
        bench = Bench()
        gone, *others = [bench.join(text) for text in ("gone", "a", "b")[:2]]
        await settle()
        gone.cancel()
        await settle()
        assert (bench.seen.open_cohorts, bench.seen.samples) == (1, 1)
        placed = await asyncio.gather(*others, bench.join("b"), bench.join("c"))
        assert bench.judged == [["a", "b", "c"]]
        assert not any(one.partial for one in placed)

    run(test())


def test_a_cohort_without_samples_is_removed_with_its_timer() -> None:
    async def test() -> None:
        bench = Bench(timeout_s=SOON_S)
        tasks = [bench.join(text) for text in ("a", "b")]
        await settle()
        for task in tasks:
            task.cancel()
        await asyncio.sleep(3 * SOON_S)
        assert (bench.seen.open_cohorts, bench.seen.samples, bench.judged) == (0, 0, [])
        assert bench.seen.ends == {}

    run(test())


def test_a_judgement_without_waiting_samples_is_cancelled() -> None:
    async def test() -> None:
        ended: list[str] = []

        async def slow(_: Sequence[str]) -> list[GroupScore]:
            try:
                await asyncio.sleep(NEVER_S)
            finally:
                ended.append("judge")
            raise AssertionError

        bench = Bench(judge=slow)
        tasks = [bench.join(text, size=2) for text in ("a", "b")]
        await settle()
        tasks[0].cancel()
        await settle()
        assert ended == [], "one still waits"
        tasks[1].cancel()
        await settle()
        assert ended == ["judge"]

    run(test())


def test_a_sample_that_leaves_a_judgement_does_not_affect_the_others() -> None:
    async def test() -> None:
        go = asyncio.Event()

        async def when_told(samples: Sequence[str]) -> list[GroupScore]:
            await go.wait()
            return [GroupScore(i, 0.5) for i, _ in enumerate(samples)]

        bench = Bench(judge=when_told)
        tasks = [bench.join(text) for text in "abc"]
        await settle()
        tasks[0].cancel()
        await settle()
        go.set()
        assert [one.reward for one in await asyncio.gather(*tasks[1:])] == [1, 2]

    run(test())


@pytest.mark.parametrize("error", [EngineFailed("no device"), RuntimeError("a bug")])
def test_a_failed_judgement_fails_its_samples_and_not_the_next_cohort(error: Exception) -> None:
    async def test() -> None:
        async def fails_first(samples: Sequence[str]) -> list[GroupScore]:
            if "bad" in samples:
                raise error
            return await Bench().by_length(samples)

        bench = Bench(judge=fails_first)
        results = await asyncio.gather(*(bench.join(text) for text in ("bad", "a", "b")), return_exceptions=True)
        assert results == [error] * 3
        await asyncio.gather(*(bench.join(text) for text in "abc"))
        assert bench.seen.samples == 0

    run(test())


def test_too_many_open_cohorts_are_refused_and_open_ones_still_fill() -> None:
    async def test() -> None:
        bench = Bench(max_open=2)
        waiting = [bench.join("a", key, size=2) for key in ("p", "q")]
        await settle()
        with pytest.raises(Overloaded, match="2 cohorts wait for their samples; retry after Retry-After"):
            await bench.join("a", "r", size=2)
        await asyncio.gather(*waiting, bench.join("b", "p", size=2), bench.join("b", "q", size=2))
        assert bench.seen.shed == {"overloaded": 1}
        await asyncio.gather(bench.join("a", "r", size=2), bench.join("b", "r", size=2))

    run(test())


def test_too_many_bytes_are_refused_until_some_are_released() -> None:
    async def test() -> None:
        bench = Bench(max_bytes=300)
        first = bench.join("x" * 60)
        await settle()
        with pytest.raises(Overloaded, match="samples of 180 bytes wait"):
            await bench.join("y" * 50, "other")
        longer = bench.join("x" * 250)
        await settle()
        assert not longer.done(), "the others of its cohort wait for it"
        for waiting in (first, longer):
            waiting.cancel()
        await settle()
        second = bench.join("y" * 150, "other")
        await settle()
        assert not second.done(), "alone, a cohort may be larger than all together"
        with pytest.raises(Overloaded):
            await bench.join("y", "third")
        second.cancel()

    run(test())


def test_draining_refuses_incomplete_cohorts_at_once_and_finishes_complete_ones() -> None:
    """A trainer sends a refused sample again; a reward without its whole group it would keep."""

    async def test() -> None:
        go = asyncio.Event()

        async def when_told(samples: Sequence[str]) -> list[GroupScore]:
            await go.wait()
            return [GroupScore(i, 0.5) for i, _ in enumerate(samples)]

        bench = Bench(judge=when_told)
        complete = [bench.join(text, "p", 2) for text in "ab"]
        incomplete = [bench.join(text, key) for text, key in (("a", "p"), ("bb", "p"), ("c", "q"))]
        await settle()
        draining = asyncio.create_task(bench.cohorts.drain(NEVER_S))
        results = await asyncio.gather(*incomplete, return_exceptions=True)
        assert [type(result) for result in results] == [ShuttingDown] * 3
        assert not draining.done()
        go.set()
        assert [one.reward for one in await asyncio.gather(*complete)] == [0, 1]
        await draining
        assert bench.seen.ends == {"full": 1, "drain": 2}
        assert bench.seen.shed == {"shutting_down": 3}
        assert (bench.seen.open_cohorts, bench.seen.samples) == (0, 0)
        with pytest.raises(ShuttingDown):
            await bench.join("late")

    run(test())


def test_incomplete_cohorts_may_be_refused_at_their_deadline() -> None:
    async def test() -> None:
        bench = Bench(timeout_s=SOON_S, scores_partial=False)
        waiting = [bench.join(text) for text in "ab"]
        results = await asyncio.gather(*waiting, bench.join("c", "other"), return_exceptions=True)
        assert [type(result) for result in results] == [IncompleteGroup] * 3
        assert str(results[0]) == "2 of 3 samples of this group arrived within 0.05 s; send all of them again"
        assert bench.judged == []
        assert bench.seen.shed == {"incomplete_group": 3}
        assert (bench.seen.open_cohorts, bench.seen.samples) == (0, 0)
        placed = await asyncio.gather(*(bench.join(text) for text in "abc"))
        assert not any(one.partial for one in placed)

    run(test())


@pytest.mark.parametrize("scores_partial", [True, False])
def test_a_full_cohort_that_a_sample_leaves_before_its_turn_is_incomplete(scores_partial: bool) -> None:
    async def test() -> None:
        is_free = asyncio.Event()

        async def judge(samples: Sequence[str]) -> list[GroupScore]:
            await is_free.wait()
            return await bench.by_length(samples)

        bench = Bench(scores_partial=scores_partial, answers_copies=True, judge=judge)
        before = [bench.join(text, f"before {n}") for n in range(groups.MAX_SCORED_AT_ONCE) for text in "abc"]
        await settle()
        gone, *others = [bench.join(text) for text in "abc"]
        await settle()
        gone.cancel()
        await settle()
        is_free.set()
        await asyncio.gather(*before)
        results = await asyncio.gather(*others, return_exceptions=True)
        if scores_partial:
            assert bench.judged[-1] == ["b", "c"]
            assert [isinstance(one, GroupScore) and one.partial for one in results] == [True, True]
        else:
            assert bench.judged == [["a", "b", "c"]] * groups.MAX_SCORED_AT_ONCE
            assert [str(one) for one in results] == [
                "1 of 3 samples of this group were given up before it was judged; send all of them again"
            ] * 2
            assert bench.seen.shed == {"incomplete_group": 2}
        # Sent again, all are judged together.
        assert not any(one.partial for one in await asyncio.gather(*(bench.join(text) for text in "abc")))

    run(test())


@pytest.mark.parametrize("scores_partial", [True, False])
def test_incomplete_cohorts_are_logged_once_a_minute_for_each_dialect(scores_partial: bool) -> None:
    async def test() -> None:
        bench = Bench(timeout_s=SOON_S, scores_partial=scores_partial)

        async def partial(count: int, source: str) -> list[Any]:
            joined = [bench.join("a", str(n), 8, source) for n in range(count) for _ in range(4)]
            with capture_logs() as lines:
                await asyncio.gather(*joined, return_exceptions=True)
            return [(line["dialect"], line["groups"], line["samples"], line["group_size"]) for line in lines]

        assert await partial(3, "slime") == [("slime", 1, 4, 8)]
        assert await partial(2, "slime") == []
        assert await partial(1, "openrlhf") == [("openrlhf", 1, 4, 8)]
        bench.now_s = 61.0
        assert await partial(1, "slime") == [("slime", 5, 4, 8)]
        with capture_logs() as lines:
            await asyncio.gather(*(bench.join(text) for text in "abc"))
        assert lines == []

    run(test())


@pytest.mark.parametrize(
    ("samples", "advice"),
    [
        (1, ("mostly 1 of 8 samples", "a model that scores responses alone", "TINYRM_GROUP_SIZE=1", "?group_size=1,")),
        (4, ("mostly 4 of 8 samples", "TINYRM_GROUP_SIZE or ?group_size=", "samples of one prompt, 4 it seems")),
    ],
)
def test_the_warning_says_what_to_set(samples: int, advice: Sequence[str]) -> None:
    """It names the usual number of samples: the first group to end may have another."""

    async def test() -> None:
        bench = Bench(timeout_s=SOON_S)
        with capture_logs() as lines:
            await bench.join("a", "first", size=8)
            await asyncio.gather(*(bench.join("a", key, size=8) for key in "pq" for _ in range(samples)))
            bench.now_s = 61.0
            await bench.join("a", "last", size=8)
        assert [line["log_level"] for line in lines] == ["warning"] * 2
        assert lines[-1]["groups"] == 3
        for part in (*advice, "TINYRM_COHORT_TIMEOUT_S"):
            assert part in lines[-1]["advice"]

    run(test())


def test_cohorts_that_fill_at_the_same_time_are_judged_a_few_at_a_time() -> None:
    async def test() -> None:
        busy, most = 0, 0

        async def watched(samples: Sequence[str]) -> list[GroupScore]:
            nonlocal busy, most
            busy += 1
            most = max(most, busy)
            await asyncio.sleep(0.001)
            busy -= 1
            return await Bench().by_length(samples)

        bench = Bench(judge=watched)
        keys = [str(n % 40) for n in range(120)]
        placed = await asyncio.gather(*(bench.join("x", key) for key in keys))
        assert not any(one.partial for one in placed)
        assert 1 < most <= 4

    run(test())


def test_a_judgement_that_cancels_itself_is_a_refusal_for_all_its_samples() -> None:
    """Cancel the task from inside, as if the encoding threads had ended: a cancellation is not an Exception."""

    async def test() -> None:
        async def ended(_: Sequence[str]) -> list[GroupScore]:
            raise asyncio.CancelledError

        bench = Bench(judge=ended)
        together = asyncio.gather(*(bench.join(text) for text in "abc"), return_exceptions=True)
        results = await asyncio.wait_for(together, 5)
        assert [type(result) for result in results] == [ShuttingDown] * 3
        assert (bench.seen.open_cohorts, bench.seen.samples) == (0, 0)

    run(test())


def test_a_copy_of_a_judged_sample_gets_its_score_at_once_for_a_short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(groups, "COPIES_S", SOON_S)
        bench = Bench(answers_copies=True)
        judged = await asyncio.gather(*(bench.join("x" * n) for n in (1, 2, 6)))
        copies = await asyncio.gather(*(bench.join("x" * n) for n in (6, 1, 6)))
        assert copies == [judged[2], judged[0], judged[2]]
        assert len(bench.judged) == 1
        other = [bench.join(text, key) for text, key in (("x", "another prompt"), ("new", "q"))]
        await settle()
        assert not any(one.done() for one in other), "only the same response to the same prompt is a copy"
        same = bench.join("x")
        await settle()
        assert not same.done(), "a cohort of this prompt is open, in which equal samples count separately"
        other[1].cancel()
        same.cancel()
        await asyncio.sleep(2 * SOON_S)
        late = bench.join("x")
        await settle()
        assert not late.done()
        for one in (other[0], late):
            one.cancel()
        await settle()
        assert bench.cohorts._bytes == 0

    run(test())


def test_a_copy_waits_for_the_judgement_of_its_cohort_and_fails_with_it() -> None:
    async def test() -> None:
        go = asyncio.Event()

        async def fails_second(samples: Sequence[str]) -> list[GroupScore]:
            await go.wait()
            if "bad" in samples:
                raise EngineFailed("no device")
            return await Bench().by_length(samples)

        bench = Bench(judge=fails_second, answers_copies=True)
        good = [bench.join(text) for text in ("a", "bb", "ccc")]
        bad = [bench.join(text, "r") for text in ("bad", "b", "c")]
        await settle()
        copies = [bench.join("bb"), bench.join("b", "r")]
        await settle()
        assert not copies[0].done()
        go.set()
        results = await asyncio.gather(*good, *bad, *copies, return_exceptions=True)
        assert results[6] == results[1]
        assert results[7] is results[3]
        assert isinstance(results[3], EngineFailed)

    run(test())


def test_copies_open_a_cohort_unless_they_are_to_be_answered() -> None:
    async def test() -> None:
        bench = Bench()
        await asyncio.gather(*(bench.join(text) for text in "abc"))
        again = [bench.join(text) for text in "ab"]
        await settle()
        assert not any(one.done() for one in again)
        await asyncio.gather(*again, bench.join("c"))
        assert bench.judged == [["a", "b", "c"]] * 2

    run(test())


def test_judged_cohorts_are_forgotten_when_others_need_their_room() -> None:
    async def test() -> None:
        bench = Bench(answers_copies=True, max_bytes=60)
        for key in "pqr":
            await asyncio.gather(*(bench.join(text * 10, key) for text in "abc"))
        assert bench.cohorts._bytes == 60
        newer = bench.join("c" * 10, "r")
        older = bench.join("c" * 10, "p")
        await settle()
        assert newer.done()
        assert not older.done()
        older.cancel()

    run(test())


def test_a_cohort_is_refused_when_it_would_open_if_those_before_it_take_too_long() -> None:
    """Its later samples are not, however long it has become by then: the first ones were accepted."""

    async def test() -> None:
        async def slowly(samples: Sequence[str]) -> list[GroupScore]:
            bench.now_s += 10.0
            return await Bench().by_length(samples)

        bench = Bench(max_wait_s=25.0, judge=slowly)
        await asyncio.gather(*(bench.join(text) for text in "abc"))  # takes 10 s
        waiting = [bench.join("a", key) for key in "pqr"]
        await settle()
        with pytest.raises(Overloaded, match="the groups that were accepted before take 30 s, more than 25 s"):
            await bench.join("a", "s")
        for key in "pqr":
            waiting += [bench.join(text, key) for text in ("b", "c")]
        assert not any(one.partial for one in await asyncio.gather(*waiting))
        assert bench.seen.shed == {"overloaded": 1}
        await asyncio.gather(*(bench.join(text, "s") for text in "abc"))

    run(test())


def test_the_pace_is_that_of_cohorts_one_after_another() -> None:
    """Of cohorts that are judged at once, only the time since the end of the one before counts."""
    pace = Pace()
    assert pace.estimate_s(1e9) == 0, "nothing is known yet"
    for ended in (4.0, 5.0, 6.0, 7.0):
        pace.observe(10.0, 3.0, ended)
    for n in range(60):
        pace.observe(10.0, 100.0 + n, 102.0 + n)  # two at a time, of two seconds each
    assert pace.estimate_s(30.0) == pytest.approx(3.0, rel=0.1)
    pace.observe(10.0, 1000.0, 1001.0)
    assert pace.estimate_s(30.0) == pytest.approx(3.0, rel=0.1), "the pause before it is not its own"
