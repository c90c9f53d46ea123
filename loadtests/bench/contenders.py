"""The engines that are compared, and the command that starts each."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tinyrm.engines import ENGINES

DEV, PEERS = Path(".venv/dev/bin/python"), Path(".venv/bench-peers/bin/python")
OPTIMUM, INFINITY = Path(".venv/bench-optimum/bin/python"), Path(".venv/bench-infinity/bin/python")
OPTIMUM_INTEL = Path(".venv/bench-openvino/bin/python")
FASTEMBED, FLASHRANK = Path(".venv/bench-fastembed/bin/python"), Path(".venv/bench-flashrank/bin/python")
OURS = "ours-ort-fp32"
REFERENCE = "transformers-fp32"
# No engine: a part of every engine's work, in turns with them, so that a machine that slows down slows it down, too.
PRODUCTS = "products-fp32"


@dataclass(frozen=True, slots=True)
class Contender:
    """One engine in one precision.

    python: of the environment that has it.
    artifact: the folder that it reads, by its name in prepare.py.
    runner: an engine of tinyrm.engines for a bundle, otherwise a module of loadtests.bench.workers.
    options: of that module.
    """

    name: str
    title: str
    precision: str
    python: Path
    artifact: str
    runner: str
    options: tuple[str, ...] = ()

    def command(self, artifact: Path, threads: int) -> list[str]:
        if self.runner in ENGINES:
            words = ["tinyrm.engines", str(artifact), "--engine", self.runner]
        else:
            words = [f"loadtests.bench.workers.{self.runner}", "--model", str(artifact), *self.options]
        return [str(self.python), "-m", *words, "--precision", self.precision, "--threads", str(threads)]


ORT, OPENVINO, MLM = "onnxruntime-cpu", "openvino-cpu", "transformers_mlm"
_ALL = (
    Contender(OURS, "TinyRM, ONNX Runtime, fp32", "fp32", DEV, "bundle", ORT),
    Contender("ours-ort-int8", "TinyRM, ONNX Runtime, int8", "int8", DEV, "bundle-int8", ORT),
    Contender("ours-ov-fp32", "TinyRM, OpenVINO, fp32", "fp32", DEV, "bundle", OPENVINO),
    Contender("ours-ov-bf16", "TinyRM, OpenVINO, bf16", "bf16", DEV, "bundle-bf16", OPENVINO),
    Contender("plain-ort-fp32", "plain export, ONNX Runtime, fp32", "fp32", DEV, "bundle-plain", ORT),
    Contender(REFERENCE, "transformers, full head, fp32", "fp32", PEERS, "model", MLM),
    Contender("transformers-bf16", "transformers, full head, bf16", "bf16", PEERS, "model", MLM),
    Contender("optimum-ort-fp32", "optimum-onnx export, ONNX Runtime, fp32", "fp32", OPTIMUM, "stock", "optimum_ort"),
    Contender(PRODUCTS, "the matrix products alone, ONNX Runtime, fp32", "fp32", DEV, "model", "products_alone"),
)
CONTENDERS = {contender.name: contender for contender in _ALL}


def missing(contender: Contender, reasons: Mapping[str, str]) -> str:
    """Return why a contender cannot start, or an empty string. reasons: why artifacts could not be made."""
    if not contender.python.exists():
        return f"{contender.python.parent.parent} is not installed (`make bench-peers` makes it)"
    return reasons.get(contender.artifact, "")


def environment(threads: int) -> dict[str, str]:
    """Return variables that give each contender as many threads, fetch nothing and report nothing."""
    offline = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**offline, **counts, "TOKENIZERS_PARALLELISM": "false", "NO_COLOR": "1"}
