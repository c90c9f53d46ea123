"""python -m loadtests.bench --device: what the first minutes on a GPU must tell, beside what physics allows.

Rates of the card; packed tokens at each length, as a share of them; one sequence alone, launched kernel by kernel,
compiled, and as a captured graph; tokens that only fill; ONNX Runtime with CUDA and with TensorRT. Each row is saved
when it is measured. A row that has no time left, or fails, is in the results with the reason.

`--device cpu --quick` runs the same code on a tiny model, to test it.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from loadtests.bench import device_card, device_tables
from loadtests.bench.contenders import environment
from loadtests.bench.device_card import Rates
from loadtests.bench.process import Worker, WorkerFailed
from loadtests.bench.shapes import GEOMETRIES, Special, modernbert
from tinyrm.command_line import parse
from tinyrm.encoding import Encoding, Truncation
from tinyrm.engines.packing import Bucket
from tinyrm.engines.torch_gpu import BUCKETS, TorchCudaEngine
from tinyrm.files import write_atomically
from tinyrm.flops import Geometry
from tinyrm.modernbert.model import PreferenceModel

NO_GPU = "no GPU: torch finds no CUDA device here (`--device cpu --quick` tests the script without one)"
NO_TIME = "not measured: the time was over"
LENGTHS = (256, 512, 1024, 4096)
# Around the window, where a mistake by one shows, and long ones.
PARITY_LENGTHS = (64, 65, 129, 130, 1000, 4000)
MIN_SAMPLES = 5
STEPS_IN_ONE_CALL = 4
ON_GPUS, ON_CPUS = ("onnxruntime-cuda", "onnxruntime-tensorrt"), ("onnxruntime-cpu",)
TF32_DIFFERENCE = 1e-2
TINY = modernbert(vocab=2048, hidden=64, intermediate=96, layers=4, heads=2)

Row = dict[str, Any]
Run = Callable[[Sequence[Encoding]], NDArray[np.float32]]
DeviceName = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Options:
    """Measure the engines for GPUs on the card of this machine, beside its limits, in ten minutes."""

    device: DeviceName = "cuda"
    """cpu computes the same, slowly."""
    quick: bool = False
    """A tiny model and little time for each row: shows whether it runs, not how fast."""
    total_s: float = 570
    """Time for all rows; what is left then is listed as not measured."""
    row_s: float = 3
    """Time for the samples of one row."""
    geometry: tuple[Literal["base", "large"], ...] = ("base", "large")
    """Sizes to measure."""
    out: Path = Path("runs/bench/device")
    """Folder of device.json, device.md, the models and their bundles."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured where.

    buckets: of the packed engine; the largest is a step of the throughput.
    """

    device: torch.device
    precision: str
    geometries: Mapping[str, Geometry]
    lengths: Sequence[int]
    buckets: Sequence[int]
    row_s: float
    compiles: bool

    @classmethod
    def of(cls, options: Options) -> "Plan":
        device = torch.device(options.device)
        precision = "bf16" if options.device == "cuda" else "fp32"
        if options.quick:
            return cls(device, precision, {"tiny": TINY}, (64, 256), (256, 512), 0.05, compiles=False)
        geometries: dict[str, Geometry] = {name: GEOMETRIES[name] for name in options.geometry}
        return cls(device, precision, geometries, LENGTHS, BUCKETS, options.row_s, compiles=True)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def max_tokens(self) -> int:
        return max(self.lengths)


@dataclass(slots=True)
class Results:
    """Rows, written to `file` with each new one."""

    file: Path
    header: Mapping[str, Any]
    end: float
    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def left_s(self) -> float:
        return self.end - time.monotonic()

    def add(self, row: Row) -> None:
        self.rows.append(row)
        if not row.get("right", True):
            self.failures.append(f"{row['model']}, {row['engine']}: {row['difference']:.1e} from fp32, {row['what']}")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file, json.dumps(self.record(), indent=1) + "\n")
        print(device_tables.line(row), flush=True)

    def record(self) -> dict[str, Any]:
        return {**self.header, "rows": self.rows, "failures": self.failures}


@dataclass(slots=True)
class Prepared:
    """A model of one size: its folder, and what it must compute.

    sequences, expected: what is compared, and its logits in fp32 by transformers.
    allowed: the relative difference that is allowed to a lower precision: twice that of transformers in bf16.
    """

    name: str
    geometry: Geometry
    folder: Path
    special: Special
    model: PreferenceModel
    sequences: list[Encoding]
    expected: NDArray[np.float32]
    allowed: float


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, on a device whose rates are known."""

    one: Prepared
    plan: Plan
    rates: Rates

    @property
    def name(self) -> str:
        return self.one.name

    @property
    def packed_title(self) -> str:
        return f"torch packed, {self.plan.precision}"

    def engine(
        self, *, captured: bool = True, compiled: bool = False, buckets: Sequence[int] | None = None
    ) -> TorchCudaEngine:
        return TorchCudaEngine(
            self.one.model,
            mask_id=self.one.special.mask,
            precision=self.plan.precision,
            device=str(self.plan.device),
            buckets=buckets or self.plan.buckets,
            compiled=compiled,
            captured=captured,
        )

    def parity(self, engine: str, run: Run) -> Iterator[Row]:
        """Yield how far the logits are from fp32, and how far those of a sequence alone are from those in a batch."""
        together = run(self.one.sequences)
        alone = np.concatenate([run([sequence]) for sequence in self.one.sequences])
        for what, found, expected in (
            ("parity, one batch", together, self.one.expected),
            ("parity, one by one", alone, self.one.expected),
            ("alone against together", alone, together),
        ):
            yield parity_row(what, engine, relative(found, expected), self.one.allowed)

    def throughput(self, engine: str, tokens: int, count: int, run: Run) -> Row:
        """Return pairs and tokens a second of calls with `count` sequences. A pair is one sequence."""
        sequences = repeated(self.one.special, tokens, count)
        return self.row(engine, tokens, samples(lambda: run(sequences), self.plan.row_s), count)

    def latency(self, engine: str, tokens: int, run: Run) -> Row:
        """Return the time of one sequence alone, from ids in memory to logits in memory."""
        sequences = repeated(self.one.special, tokens, 1)
        return self.row(engine, tokens, samples(lambda: run(sequences), self.plan.row_s))

    def row(self, engine: str, tokens: int, seconds: Sequence[float], count: int = 0) -> Row:
        """Return a row with limits. count: sequences of each call, if it is the throughput that is wanted."""
        p10_s, median_s, p90_s = map(float, np.percentile(seconds, [10, 50, 90]))
        rates = self.rates
        return {
            "what": "throughput" if count else "latency",
            "engine": engine,
            "tokens": tokens,
            **({"pairs_per_s": count / median_s, "tokens_per_s": count * tokens / median_s} if count else {}),
            "median_s": median_s,
            "p10_s": p10_s,
            "p90_s": p90_s,
            "samples": len(seconds),
            **device_tables.limits(self.name, self.one.geometry, tokens, rates.flops_per_s, rates.bytes_per_s),
        }


def main(arguments: list[str] | None = None) -> int:
    """Return 1 if a parity failed, 2 if there is no such device."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if "--device" in words:  # alone, it is the GPU
        at = words.index("--device") + 1
        if at == len(words) or words[at].startswith("-"):
            words.insert(at, "cuda")
    options = parse(Options, words, prog="python -m loadtests.bench --device")
    if options.device == "cuda" and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    plan = Plan.of(options)
    header = {
        "device": device_card.describe(plan.device),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "precision": plan.precision,
    }
    results = Results(options.out / "device.json", header, time.monotonic() + options.total_s)
    run(plan, results, options.out)
    text = device_tables.section(results.record())
    (options.out / "device.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    for failure in results.failures:
        print(f"parity failed: {failure}", file=sys.stderr)
    return 1 if results.failures else 0


def run(plan: Plan, results: Results, out: Path) -> None:
    """Measure all stages, the most important first; one that fails is a row, and does not end the others."""
    rates = device_card.measure_rates(plan.device, plan.dtype, plan.row_s)
    results.add({"what": "rates", "flops_per_s": rates.flops_per_s, "bytes_per_s": rates.bytes_per_s})
    subjects: list[Subject] = []
    for name, geometry in plan.geometries.items():

        def prepared(name: str = name, geometry: Geometry = geometry) -> Iterator[Row]:
            one = prepare(name, geometry, plan, out, results.left_s)
            subjects.append(Subject(one, plan, rates))
            yield {"what": "model", "engine": "transformers", "allowed": one.allowed}

        stage("model", name, prepared, results)
    for subject in subjects:
        stage("packed", subject.name, partial(packed_rows, subject, compiled=False), results)
    stage("filling", "any", partial(filling_rows, plan), results)
    for subject in subjects:
        stage("products", subject.name, partial(product_rows, subject), results)
        stage("steps", subject.name, partial(step_rows, subject), results)
    for subject in subjects:
        stage("runtimes", subject.name, partial(runtime_rows, subject, out, results), results)
    for subject in subjects:  # last: it changes the layers
        if plan.compiles:
            stage("compiled", subject.name, partial(packed_rows, subject, compiled=True), results)
        else:
            results.add({"what": "compiled", "model": subject.name, "reason": "left out by --quick"})


def stage(what: str, model: str, rows: Callable[[], Iterator[Row]], results: Results) -> None:
    """Add the rows as they come, until the time is over. A failure is a row with the reason."""
    try:
        if results.left_s <= 0:
            results.add({"what": what, "model": model, "reason": NO_TIME})
            return
        for row in rows():
            results.add({"model": model, **row})
            if results.left_s <= 0:
                results.add({"what": what, "model": model, "reason": f"cut short: {NO_TIME}"})
                return
    except Exception as failure:  # noqa: BLE001  # torch's own and those of drivers share no base class
        results.add({"what": what, "model": model, "reason": f"{type(failure).__name__}: {failure}"[:300]})


def prepare(name: str, geometry: Geometry, plan: Plan, out: Path, timeout_s: float) -> Prepared:
    """Make random weights, and compute in fp32 what every engine is compared with."""
    folder, special = out / "models" / name, Special.of(geometry.vocab)
    command = [sys.executable, "-m", "loadtests.bench.make_models", "--kind", "masked-lm"]
    command += ["--geometry", geometry.model_dump_json(), "--out", str(folder)]
    run_quietly(command, timeout_s)
    from transformers import AutoModelForMaskedLM

    lengths = [length for length in PARITY_LENGTHS if length <= plan.max_tokens]
    sequences = [random_sequence(length, special, seed) for seed, length in enumerate(lengths)]

    def logits(dtype: torch.dtype) -> NDArray[np.float32]:
        model = AutoModelForMaskedLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").to(plan.device)
        rows = []
        for sequence in sequences:
            ids = torch.from_numpy(sequence.input_ids)[None].to(plan.device)
            with torch.inference_mode():
                found = model.eval()(ids).logits
            rows.append(found[0, int(np.argmax(sequence.input_ids == special.mask)), list(special.labels)])
        stacked: NDArray[np.float32] = torch.stack(rows).float().cpu().numpy()
        return stacked

    expected = logits(torch.float32)
    allowed = 1e-4 if plan.precision == "fp32" else 2 * relative(logits(plan.dtype), expected)
    source = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = PreferenceModel(source, special.labels, max_tokens=plan.max_tokens, fused=True)
    return Prepared(name, geometry, folder, special, model, sequences, expected, allowed)


def packed_rows(subject: Subject, *, compiled: bool) -> Iterator[Row]:
    """Yield parity, then throughput and one sequence alone at each length, of the packed engine."""
    title = subject.packed_title + (", compiled" if compiled else "")
    graphs = subject.engine(compiled=compiled)
    yield from subject.parity(title, graphs.run)
    for tokens in subject.plan.lengths:
        count = STEPS_IN_ONE_CALL * (max(subject.plan.buckets) // tokens)
        yield subject.throughput(title, tokens, count, graphs.run)
    # The layers stay compiled: once is enough.
    launched = subject.engine(captured=False)
    for tokens in subject.plan.lengths:
        yield subject.latency(f"{title}, graph", tokens, graphs.run)
        yield subject.latency(f"{title}, kernel by kernel", tokens, launched.run)
    device = subject.plan.device
    if device.type == "cuda":
        yield {"what": "memory", "engine": title, "bytes": torch.cuda.max_memory_allocated(device)}


def step_rows(subject: Subject) -> Iterator[Row]:
    """Yield the throughput against the tokens of a step."""
    tokens = subject.plan.lengths[1]
    for bucket in subject.plan.buckets:
        if tokens <= bucket:
            engine = subject.engine(buckets=(bucket,))
            row = subject.throughput(subject.packed_title, tokens, STEPS_IN_ONE_CALL * (bucket // tokens), engine.run)
            yield {**row, "what": "step", "step_tokens": bucket}


def product_rows(subject: Subject) -> Iterator[Row]:
    """Yield the rates of a layer's products in a whole step."""
    plan = subject.plan
    shapes = device_card.products(subject.one.geometry, max(plan.buckets))
    for name, shape in shapes.items():
        rate = device_card.product_rate(shape, plan.device, plan.dtype, plan.row_s / len(shapes))
        yield {"what": "product", "engine": "torch", "product": name, "shape": shape, "rate": rate}


def filling_rows(plan: Plan) -> Iterator[Row]:
    """Yield which share of a step's tokens only fills its bucket, by how many sequences of mixed lengths wait."""
    dice = np.random.default_rng(17)
    buckets = [Bucket.of(tokens, plan.max_tokens) for tokens in sorted(plan.buckets)]
    for waiting in (1, 4, 16):
        used = filled = 0
        for _ in range(200):
            drawn = np.clip(np.rint(dice.lognormal(np.log(150), 0.9, waiting)), 20, plan.lengths[-1]).astype(int)
            bucket = next((b for b in buckets if b.takes(int(drawn.sum()), waiting)), None)
            if bucket is not None and drawn.max() <= bucket.longest:
                used, filled = used + int(drawn.sum()), filled + bucket.tokens
        if filled:
            yield {"what": "filling", "engine": "torch packed", "waiting": waiting, "share": 1 - used / filled}


def runtime_rows(subject: Subject, out: Path, results: Results) -> Iterator[Row]:
    """Yield ONNX Runtime's engines, each in a process of its own; one that is not installed is a reason."""
    reason, present = "", list[str]()
    try:
        from tinyrm.engines.onnx_runtime import available

        present = available()
    except ImportError as error:
        reason = f"not installed: {error}"
    for absent in (name for name in ON_GPUS if name not in present):
        reason = reason or f"this build of ONNX Runtime lacks it; it has: {', '.join(present)}"
        yield {"what": "runtime", "engine": absent, "reason": reason}
    wanted = [name for name in (ON_GPUS if subject.plan.device.type == "cuda" else ON_CPUS) if name in present]
    if not wanted:
        return
    bundle = out / "bundles" / subject.name
    command = [sys.executable, "-m", "export", "--model", str(subject.one.folder), "--out", str(bundle)]
    started = time.monotonic()
    run_quietly([*command, "--max-tokens", str(subject.plan.max_tokens)], results.left_s)
    yield {"what": "export", "engine": "onnx", "seconds": time.monotonic() - started}
    for name in wanted:
        try:
            yield from runtime_row(subject, name, bundle, results)
        except WorkerFailed as failure:
            yield {"what": "runtime", "engine": name, "reason": str(failure)}


def runtime_row(subject: Subject, name: str, bundle: Path, results: Results) -> Iterator[Row]:
    """Yield the time until a first reply, parity, and the time at each length."""
    one, plan, engine = subject.one, subject.plan, f"{name}, fp32"
    command = [sys.executable, "-m", "tinyrm.engines", str(bundle), "--engine", name, "--precision", "fp32"]
    started = time.monotonic()
    worker = Worker(command, environment(1), bundle.parent / f"{one.name}-{name}.log")

    def timed(sequences: Sequence[Encoding]) -> tuple[list[float], NDArray[np.float32]]:
        longest = max(map(len, sequences))
        ids = [np.pad(s.input_ids, (0, longest - len(s)), constant_values=one.special.pad).tolist() for s in sequences]
        mask = [[1] * len(s) + [0] * (longest - len(s)) for s in sequences]
        body = {"input_ids": ids, "attention_mask": mask, "warmup": 1, "repeat": MIN_SAMPLES}
        reply = worker.send(body, max(1, results.left_s))
        return reply["seconds"], np.array(reply["logits"], np.float32)

    try:
        worker.wait_ready(max(1, results.left_s))
        _, logits = timed(one.sequences)
        # TensorRT builds an engine for each of its shapes before this.
        yield {"what": "start", "engine": name, "seconds": time.monotonic() - started}
        # Products in fp32 are TF32 by default in both.
        yield parity_row("parity", engine, relative(logits, one.expected), max(one.allowed, TF32_DIFFERENCE))
        for tokens in plan.lengths:
            count = max(1, max(plan.buckets) // tokens)
            yield subject.row(engine, tokens, timed(repeated(one.special, tokens, count))[0], count)
            yield subject.row(engine, tokens, timed(repeated(one.special, tokens, 1))[0])
    finally:
        worker.close(timeout_s=5)


def parity_row(what: str, engine: str, difference: float, allowed: float) -> Row:
    right = difference <= allowed
    return {"what": what, "engine": engine, "difference": difference, "allowed": allowed, "right": right}


def samples(call: Callable[[], object], budget_s: float) -> list[float]:
    """Return the seconds of each call, after two that capture graphs and fill caches.

    A call of an engine returns when its logits are in memory: no device has to be waited for.
    """
    call()
    call()
    found: list[float] = []
    end = time.perf_counter() + budget_s
    while len(found) < MIN_SAMPLES or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return found


def repeated(special: Special, tokens: int, count: int) -> list[Encoding]:
    """Return random sequences, all different."""
    return [random_sequence(tokens, special, seed) for seed in range(count)]


def random_sequence(tokens: int, special: Special, seed: int) -> Encoding:
    """Return [CLS] ... [MASK] [SEP]."""
    dice = np.random.default_rng([tokens, seed])
    ids = dice.integers(special.mask + 1, special.vocab, tokens)
    ids[0], ids[-2], ids[-1] = special.cls, special.mask, special.sep
    return Encoding(ids.astype(np.int64), Truncation())


def relative(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return |found - expected| / |expected|; infinity if a value is not a number or the shapes differ."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def run_quietly(command: Sequence[str], timeout_s: float) -> None:
    """Run a program. Raises RuntimeError with its last line if it fails or needs longer."""
    try:
        done = subprocess.run(  # noqa: S603  # the commands above
            command, capture_output=True, text=True, timeout=max(1, timeout_s), check=False
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{command[2]} was not done within {timeout_s:.0f} s") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        raise RuntimeError(f"{command[2]} failed: {lines[-1][:200]}")


if __name__ == "__main__":
    sys.exit(main())
