"""Who is compared, with the command that starts each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.bench.prepare import Prepared
from loadtests.bench.shapes import Special

DEV, PEERS = Path(".venv/dev/bin/python"), Path(".venv/bench-peers/bin/python")
OPTIMUM, INFINITY = Path(".venv/bench-optimum/bin/python"), Path(".venv/bench-infinity/bin/python")
OURS = "ours-ort-fp32"
NO_BF16 = "not measured: no bf16 (this CPU has neither avx512_bf16 nor amx_bf16)"

# name: title, engine, precision, bundle
RUNTIMES = {
    OURS: ("TinyRM, ONNX Runtime, fp32", "onnxruntime-cpu", "fp32", "bundle"),
    "ours-ort-int8": ("TinyRM, ONNX Runtime, int8", "onnxruntime-cpu", "int8", "bundle-int8"),
    "ours-ov-fp32": ("TinyRM, OpenVINO, fp32", "openvino-cpu", "fp32", "bundle"),
    "ours-ov-bf16": ("TinyRM, OpenVINO, bf16", "openvino-cpu", "bf16", "bundle-bf16"),
    "plain-ort-fp32": ("plain export, ONNX Runtime, fp32", "onnxruntime-cpu", "fp32", "bundle-plain"),
}
# name: title, python, module of loadtests.bench.workers, precision, what it reads
PEER_WORKERS = {
    "transformers-fp32": ("transformers, full head, fp32", PEERS, "transformers_mlm", "fp32", "model"),
    "transformers-bf16": ("transformers, full head, bf16", PEERS, "transformers_mlm", "bf16", "model"),
    "optimum-ort-fp32": ("optimum-onnx export, ONNX Runtime, fp32", OPTIMUM, "optimum_ort", "fp32", "stock"),
    "infinity": ("infinity_emb over HTTP, classifier, fp32", INFINITY, "infinity_http", "fp32", "classifier"),
    "cross-encoder": ("sentence-transformers CrossEncoder, fp32", PEERS, "cross_encoder", "fp32", "classifier"),
}


@dataclass(frozen=True, slots=True)
class Contender:
    """reason: why it is not even started; empty if it can be."""

    name: str
    title: str
    precision: str
    command: list[str]
    log: Path
    reason: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


def names() -> list[str]:
    return [*RUNTIMES, *PEER_WORKERS]


def contenders(
    chosen: list[str], prepared: Prepared, special: Special, threads: int, logs: Path, *, native_bf16: bool
) -> list[Contender]:
    """Those chosen, in the order of `names()`."""
    made = []
    for name in (known for known in names() if known in chosen):
        if name in RUNTIMES:
            title, engine, precision, needs = RUNTIMES[name]
            python, arguments = DEV, ["tinyrm.engines", str(prepared.paths[needs]), "--engine", engine]
        else:
            title, python, module, precision, needs = PEER_WORKERS[name]
            arguments = [f"loadtests.bench.workers.{module}", "--model", str(prepared.paths[needs])]
            arguments += ["--mask", str(special.mask), "--labels", *map(str, special.labels)]
        command = [str(python), "-m", *arguments, "--precision", precision, "--threads", str(threads)]
        reason = prepared.reasons.get(needs, "") if python.exists() else _not_installed(python)
        if precision == "bf16" and not native_bf16:
            reason = NO_BF16
        made.append(Contender(name, title, precision, command, logs / f"{name}.log", reason, environment(threads)))
    return made


def environment(threads: int) -> dict[str, str]:
    """As many threads for each, nothing fetched, nothing reported."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**offline, **counts, "TOKENIZERS_PARALLELISM": "false", "NO_COLOR": "1"}


def _not_installed(python: Path) -> str:
    return f"{python.parent.parent} is not installed (`make bench-peers` makes it)"
