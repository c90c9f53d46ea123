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
    engine: of a bundle; empty for a worker of another library.
    worker: module of loadtests.bench.workers; empty for our engines.
    """

    name: str
    title: str
    precision: str
    python: Path
    artifact: str
    engine: str = ""
    worker: str = ""

    def command(self, artifact: Path, special: Special, threads: int) -> list[str]:
        if self.engine:
            words = ["tinyrm.engines", str(artifact), "--engine", self.engine]
        else:
            words = [f"loadtests.bench.workers.{self.worker}", "--model", str(artifact)]
            words += ["--mask", str(special.mask), "--labels", *map(str, special.labels)]
        return [str(self.python), "-m", *words, "--precision", self.precision, "--threads", str(threads)]


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(OURS, "TinyRM, ONNX Runtime, fp32", "fp32", DEV, "bundle", engine="onnxruntime-cpu"),
        Contender("ours-ort-int8", "TinyRM, ONNX Runtime, int8", "int8", DEV, "bundle-int8", engine="onnxruntime-cpu"),
        Contender("ours-ov-fp32", "TinyRM, OpenVINO, fp32", "fp32", DEV, "bundle", engine="openvino-cpu"),
        Contender("ours-ov-bf16", "TinyRM, OpenVINO, bf16", "bf16", DEV, "bundle-bf16", engine="openvino-cpu"),
        Contender(
            "plain-ort-fp32",
            "plain export, ONNX Runtime, fp32",
            "fp32",
            DEV,
            "bundle-plain",
            engine="onnxruntime-cpu",
        ),
        Contender(REFERENCE, "transformers, full head, fp32", "fp32", PEERS, "model", worker="transformers_mlm"),
        Contender(
            "transformers-bf16", "transformers, full head, bf16", "bf16", PEERS, "model", worker="transformers_mlm"
        ),
        Contender(
            "optimum-ort-fp32",
            "optimum-onnx export, ONNX Runtime, fp32",
            "fp32",
            OPTIMUM,
            "stock",
            worker="optimum_ort",
        ),
        Contender(
            "infinity",
            "infinity_emb over HTTP, classifier, fp32",
            "fp32",
            INFINITY,
            "classifier",
            worker="infinity_http",
        ),
        Contender(
            "cross-encoder",
            "sentence-transformers CrossEncoder, fp32",
            "fp32",
            PEERS,
            "classifier",
            worker="cross_encoder",
        ),
    )
}


def environment(threads: int) -> dict[str, str]:
    """Return variables that give each contender as many threads, fetch nothing and report nothing."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**offline, **counts, "TOKENIZERS_PARALLELISM": "false", "NO_COLOR": "1"}
