"""The caller's side of the engine contract: whatever an engine does, the caller gets logits or an error, in time."""

import queue
import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyrm.errors import EngineFailed, EngineHung
from tinyrm.runtimes import Engine


@dataclass
class GuardedEngine:
    """An engine whose exceptions, answers of a wrong shape, and silence are all reported as EngineFailed.

    Logits that are not finite pass: `tinyrm.readout` refuses them one by one, so that a row does not fail its mates.
    timeout_s: a run that takes longer is given up (EngineHung). The thread it blocks cannot be ended, so from then on
    every run is refused at once, until the caller opens a new engine.
    """

    engine: Engine
    timeout_s: float
    hung: bool = False

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def precision(self) -> str:
        return self.engine.precision

    @property
    def step(self) -> int:
        return self.engine.step

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        if self.hung:
            raise EngineHung(f"{self.name} has not come back from an earlier run; restart it")
        outcome: queue.SimpleQueue[NDArray[np.float32] | BaseException] = queue.SimpleQueue()

        def work() -> None:
            try:
                outcome.put(self.engine.run(input_ids, attention_mask))
            except BaseException as error:  # noqa: BLE001  # carried to the caller, whatever it is
                outcome.put(error)

        threading.Thread(target=work, daemon=True, name="engine-run").start()
        try:
            answer = outcome.get(timeout=self.timeout_s)
        except queue.Empty:
            self.hung = True
            raise EngineHung(f"{self.name} did not answer within {self.timeout_s:g} s; restart it") from None
        if isinstance(answer, BaseException):
            raise answer if isinstance(answer, EngineFailed) else EngineFailed(f"{self.name}: {answer}") from answer
        if getattr(answer, "shape", None) != (len(input_ids), 2):
            raise EngineFailed(f"{self.name} gave {getattr(answer, 'shape', type(answer))} for {len(input_ids)} rows")
        return answer
