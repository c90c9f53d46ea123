"""Whatever an engine does, its caller hears of it: exceptions, wrong shapes, silence, and logits that are none."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinyrm.errors import EngineFailed, EngineHung
from tinyrm.readout import read_out
from tinyrm.runtimes.guard import GuardedEngine

IDS = np.ones((3, 5), dtype=np.int64)


class Acting:
    name, precision, step = "acting", "fp32", 1

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def run(self, input_ids: Any, attention_mask: Any) -> Any:
        return self.act()


def raising(error: BaseException) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


def test_logits_pass_untouched() -> None:
    logits = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert GuardedEngine(Acting(lambda: logits), 5).run(IDS, IDS) is logits


@pytest.mark.parametrize("error", [ValueError("no"), EngineFailed("no"), MemoryError("no"), SystemExit("no")])
def test_whatever_is_raised_is_the_engines_failure(error: BaseException) -> None:
    with pytest.raises(EngineFailed, match="no"):
        GuardedEngine(Acting(raising(error)), 5).run(IDS, IDS)


@pytest.mark.parametrize("answer", [None, np.zeros((2, 2)), np.zeros((3, 3)), np.zeros(6), "text"])
def test_an_answer_of_another_shape_is_refused(answer: Any) -> None:
    with pytest.raises(EngineFailed, match="for 3 rows"):
        GuardedEngine(Acting(lambda: answer), 5).run(IDS, IDS)


def test_silence_is_reported_and_the_next_caller_does_not_wait() -> None:
    release, calls = threading.Event(), []

    def hang() -> Any:
        calls.append(1)
        release.wait(30)

    engine = GuardedEngine(Acting(hang), 0.05)
    with pytest.raises(EngineHung, match=r"0\.05 s"):
        engine.run(IDS, IDS)
    with pytest.raises(EngineHung, match="earlier"):
        engine.run(IDS, IDS)
    assert (len(calls), engine.hung) == (1, True)
    release.set()


def test_a_row_that_is_no_number_fails_alone() -> None:
    logits = np.array([[1.0, 2.0], [np.nan, 0.0], [3.0, 1.0]], dtype=np.float32)
    answer = GuardedEngine(Acting(lambda: logits), 5).run(IDS, IDS)
    assert read_out(answer[:1], 1.0).margin == -1
    with pytest.raises(EngineFailed, match="finite"):
        read_out(answer[1:2], 1.0)
