"""Test when samples that arrive one by one are judged, and as which group."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.scripted_server import USAGE, Handler, Received, ScriptedServer, answer, error, scripted
from tests.support.waiting import PATIENCE_S
from tinyrm.errors import IncompleteGroup, ServiceFailed
from tinyrm.integrations import meeting as meeting_module
from tinyrm.integrations.meeting import Judgement, Meeting, Sample


def of_length(handler: Handler, received: Received) -> None:
    """Reply to /v1/rewards: how much longer a response is than the mean of its group."""
    lengths = [len(text) for text in received.body["responses"]]
    rewards = [length - sum(lengths) / len(lengths) for length in lengths]
    answer(200, {"rewards": rewards, "sets": None, "model": "toy@1", "usage": USAGE})(handler, received)


@pytest.fixture(autouse=True)
def _no_slow_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting_module, "COPIES_ARRIVE_WITHIN_S", 0.5)


@pytest.fixture
def service() -> Iterator[ScriptedServer]:
    with scripted(of_length) as server:
        yield server


def sample(response: str, group: str = "g", size: int = 3, **fields: Any) -> Sample:
    return Sample(group, size, f"prompt of {group}", response, **fields)


def judge(server: ScriptedServer, *samples: Sample, **arguments: Any) -> list[Judgement]:
    """Send all samples in this order, the last one a moment after the others."""

    async def together() -> list[Judgement]:
        meeting = Meeting(server.url, timeout_s=PATIENCE_S, **arguments)
        judging = [asyncio.create_task(meeting.judge(sample)) for sample in samples[:-1]]
        await asyncio.sleep(0.02)
        return await asyncio.gather(*judging, meeting.judge(samples[-1]))

    return asyncio.run(together())


def rewards(judgements: list[Judgement]) -> list[float]:
    assert not any(judgement.is_partial for judgement in judgements)
    return [judgement.reward for judgement in judgements]


def groups(server: ScriptedServer) -> list[list[str]]:
    return [received.body["responses"] for received in server.received]


def test_groups_whose_samples_come_mixed_are_one_call_each(service: ScriptedServer) -> None:
    options = {"domain": "safety"}
    mixed = [sample(text * 2, group, options=options) for text in ("a", "bb", "ccc") for group in ("g", "h")]
    assert rewards(judge(service, *mixed)) == [-2, -2, 0, 0, 2, 2]
    assert sorted(groups(service)) == [["aa", "bbbb", "cccccc"]] * 2
    assert {received.body["prompt"] for received in service.received} == {"prompt of g", "prompt of h"}
    assert all(received.body["domain"] == "safety" for received in service.received)


def test_a_copy_that_padding_makes_takes_no_place_in_the_group(service: ScriptedServer) -> None:
    assert rewards(judge(service, *map(sample, ["a", "a", "bb", "ccc"]))) == [-1, -1, 0, 1]
    assert groups(service) == [["a", "bb", "ccc"]]


def test_equal_responses_that_are_no_copies_are_both_in_the_group(service: ScriptedServer) -> None:
    assert rewards(judge(service, *map(sample, ["a", "a", "bbbb"]))) == [-1, -1, 2]
    assert groups(service) == [["a", "a", "bbbb"]]


def test_ids_tell_copies_from_equal_responses(service: ScriptedServer) -> None:
    texts = [("a", 0), ("a", 1), ("a", 0), ("bbbb", 2)]
    assert rewards(judge(service, *(sample(text, id=number) for text, number in texts))) == [-1, -1, -1, 2]
    assert groups(service) == [["a", "a", "bbbb"]]


def test_a_sample_after_its_group_gets_the_reward_of_its_equal_or_is_compared_with_all(service: ScriptedServer) -> None:
    async def late() -> list[Judgement]:
        meeting = Meeting(service.url)
        await asyncio.gather(*(meeting.judge(sample(text)) for text in ("a", "bb", "ccc")))
        return [await meeting.judge(sample(text)) for text in ("ccc", "dddddd")]

    assert rewards(asyncio.run(late())) == [1, 3]
    assert groups(service) == [["a", "bb", "ccc"], ["a", "bb", "ccc", "dddddd"]]


def test_a_group_of_one_is_neutral_and_partial_at_once(service: ScriptedServer) -> None:
    assert judge(service, sample("a", size=1)) == [Judgement(0.0, is_partial=True)]
    assert service.received == []


@pytest.mark.parametrize(("texts", "expected"), [(["a"], [0.0]), (["a", "bbb"], [-1.0, 1.0])])
def test_a_group_that_stays_incomplete_is_partial(
    texts: list[str], expected: list[float], service: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    judged = judge(service, *map(sample, texts), group_timeout_s=0.05)
    assert judged == [Judgement(reward, is_partial=True) for reward in expected]
    assert f"{len(texts)} of the 3 samples" in caplog.text


def test_or_it_is_an_error(service: ScriptedServer) -> None:
    with pytest.raises(IncompleteGroup, match="2 of the 3 samples"):
        judge(service, sample("a"), sample("bb"), group_timeout_s=0.05, on_incomplete="raise")
    assert service.received == []


def test_a_failure_is_that_of_every_sample_of_the_group() -> None:
    async def together(url: str) -> list[Judgement | BaseException]:
        meeting = Meeting(url, timeout_s=PATIENCE_S)
        judging = (meeting.judge(sample(text)) for text in ("a", "bb", "ccc"))
        return await asyncio.gather(*judging, return_exceptions=True)

    with scripted(error(500, "internal_error")) as server:
        failures = asyncio.run(together(server.url))
    assert [type(failure) for failure in failures] == [ServiceFailed] * 3


def test_a_caller_that_gives_up_does_not_end_the_group(service: ScriptedServer) -> None:
    async def one_leaves() -> list[Judgement]:
        meeting = Meeting(service.url)
        waiting = [asyncio.create_task(meeting.judge(sample(text))) for text in ("a", "bb")]
        await asyncio.sleep(0)
        waiting[0].cancel()
        return [await meeting.judge(sample("ccc")), await waiting[1]]

    assert rewards(asyncio.run(one_leaves())) == [1, 0]
