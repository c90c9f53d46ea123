"""The engines that are compared, and the command that starts each."""

from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.shapes import Special

DEV, PEERS = Path(".venv/dev/bin/python"), Path(".venv/bench-peers/bin/python")
OPTIMUM, INFINITY = Path(".venv/bench-optimum/bin/python"), Path(".venv/bench-infinity/bin/python")
OURS = "ours-ort-fp32"
REFERENCE = "transformers-fp32"


@dataclass(frozen=True, slots=True)
class Contender:
    """One engine in one precision.

    python: of the environment that has it.
    artifact: the folder that it reads, by its name in prepare.py.
    runner: an engine of tinyrm.engines for a bundle, otherwise a module of loadtests.bench.workers.
    """

    name: str
    title: str
    precision: str
    python: Path
    artifact: str
    runner: str

    def command(self, artifact: Path, special: Special, threads: int) -> list[str]:
        if self.artifact.startswith("bundle"):
            words = ["tinyrm.engines", str(artifact), "--engine", self.runner]
        else:
            words = [f"loadtests.bench.workers.{self.runner}", "--model", str(artifact)]
            words += ["--mask", str(special.mask), "--labels", *map(str, special.labels)]
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
    Contender("infinity", "infinity_emb over HTTP, classifier, fp32", "fp32", INFINITY, "classifier", "infinity_http"),
    Contender(
        "cross-encoder", "sentence-transformers CrossEncoder, fp32", "fp32", PEERS, "classifier", "cross_encoder"
    ),
)
CONTENDERS = {contender.name: contender for contender in _ALL}


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
