"""Test every engine that runs here: the same logits alone, in batches and in several streams, in bounded memory."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from export.parity import TOLERANCE, probes
from tests.conftest import REPOSITORY
from tinyrm.bundle import Bundle
from tinyrm.encoding import Encoder
from tinyrm.engines import Engine, EngineOptions, open_engine
from tinyrm.errors import EngineUnavailable
from tinyrm.starter import STARTER

CPU_ENGINES = ("onnxruntime-cpu", "openvino-cpu")


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


@pytest.fixture(scope="module", params=CPU_ENGINES)
def engine(bundle: Bundle, request: pytest.FixtureRequest) -> Engine:
    return open_engine(bundle, EngineOptions(request.param, threads=1))


def test_the_engines_agree(bundle: Bundle, encoder: Encoder) -> None:
    encodings = probes(encoder.special, bundle.manifest.geometry.vocab, encoder.max_tokens)
    one, other = (open_engine(bundle, EngineOptions(name)).run(encodings) for name in CPU_ENGINES)
    assert np.ptp(one) > 1
    np.testing.assert_allclose(one, other, atol=TOLERANCE)


def test_batch_mates_change_nothing(engine: Engine, bundle: Bundle, encoder: Encoder) -> None:
    encodings = probes(encoder.special, bundle.manifest.geometry.vocab, encoder.max_tokens)
    alone = np.concatenate([engine.run([e]) for e in encodings])
    np.testing.assert_allclose(engine.run(encodings), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_streams_run_in_parallel_and_give_the_same_logits(name: str, bundle: Bundle, encoder: Encoder) -> None:
    engine = open_engine(bundle, EngineOptions(name, threads=1, streams=2))
    encodings = probes(encoder.special, bundle.manifest.geometry.vocab, encoder.max_tokens) * 4
    expected = [engine.run([e]) for e in encodings]
    with ThreadPoolExecutor(6) as callers:
        answers = list(callers.map(lambda e: engine.run([e]), encodings))
    np.testing.assert_allclose(np.concatenate(answers), np.concatenate(expected), atol=1e-5)


def test_bf16_needs_a_cpu_that_has_it(bundle: Bundle) -> None:
    if any(flag in Path("/proc/cpuinfo").read_text() for flag in ("avx512_bf16", "amx_bf16", "bf16 ")):
        assert open_engine(bundle, EngineOptions("openvino-cpu", precision="bf16")).info.precision == "bf16"
    else:
        with pytest.raises(EngineUnavailable, match="bf16"):
            open_engine(bundle, EngineOptions("openvino-cpu", precision="bf16"))
    with pytest.raises(EngineUnavailable, match="bf16"):
        open_engine(bundle, EngineOptions("onnxruntime-cpu", precision="bf16"))


MEMORY = """
import sys
from pathlib import Path
from tinyrm.bundle import Bundle
from tinyrm.engines import EngineOptions, open_engine

def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

bundle = Bundle.open(Path(sys.argv[1]))
open_engine(bundle, EngineOptions(sys.argv[2], threads=1)).info  # the runtime's own code
before = resident_bytes()
engine = open_engine(bundle, EngineOptions(sys.argv[2], threads=1, streams=int(sys.argv[3])))
print(resident_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["onnxruntime-cpu", pytest.param("openvino-cpu", marks=pytest.mark.slow)])
def test_streams_share_the_weights(name: str) -> None:
    grown = []
    for streams in ("1", "4"):
        command = [sys.executable, "-c", MEMORY, str(REPOSITORY / STARTER), name, streams]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        grown.append(int(done.stdout))
    one, four = grown
    weights = 4 * 10_000_000  # those of the starter's matrices, in fp32
    assert four - one < weights, "three more streams take less than one more copy"


GROWTH = """
import sys
from pathlib import Path
import numpy as np
from tinyrm.bundle import Bundle
from tinyrm.encoding import Encoding, Truncation
from tinyrm.engines import EngineOptions, open_engine

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

engine = open_engine(Bundle.open(Path(sys.argv[1])), EngineOptions(sys.argv[2], threads=1))
rng = np.random.default_rng(0)
for request in range(int(sys.argv[3])):
    if request == 1_000:
        before = resident()
    ids = rng.integers(5, 300, int(rng.integers(8, 257)))
    ids[-2] = 4
    engine.run([Encoding(ids, Truncation())])
print(resident() / before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", CPU_ENGINES)
def test_memory_stays_flat_under_ever_changing_lengths(name: str, bundle_folder: Path) -> None:
    command = [sys.executable, "-c", GROWTH, str(bundle_folder), name, "10000"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.05
