"""Test the phases of a start as the log shows them."""

import time

import psutil
import pytest

from service.phases import Phases, age_s


def test_phases_add_up_to_the_time_since_the_process_began() -> None:
    phases = Phases()
    phases.end("imports")
    time.sleep(0.02)
    phases.end("engine")
    shown = phases.for_log()
    assert list(shown) == ["start_s", "imports_s", "engine_s"]
    assert shown["engine_s"] >= 0.02
    assert shown["start_s"] == pytest.approx(shown["imports_s"] + shown["engine_s"], abs=0.002)
    assert shown["imports_s"] <= age_s()
    assert age_s() == pytest.approx(time.time() - psutil.Process().create_time(), abs=1.5)
