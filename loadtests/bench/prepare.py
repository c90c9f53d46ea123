"""Make what is compared, under runs/bench: random weights, our bundles, the stock export. Kept between runs."""

import hashlib
import json
import random
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.bench.contenders import DEV, OPTIMUM
from loadtests.bench.shapes import GEOMETRIES
from loadtests.payloads import WORDS
from tinyrm.flops import Geometry

CALIBRATION_PAIRS = 16
TIMEOUT_S = 3600
MODEL_SOURCES = ("loadtests/bench/make_models.py", "loadtests/bench/shapes.py")


@dataclass(slots=True)
class Prepared:
    """paths: by the artifact's name.
    reasons: why an artifact could not be made.
    """

    paths: dict[str, Path] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """A folder, the command that makes it, and the sources that it depends on."""

    artifact: str
    out: Path
    command: list[str]
    sources: tuple[str, ...]


def prepare(name: str, root: Path, *, wanted: set[str], max_tokens: int, log: Callable[[str], None]) -> Prepared:
    """Make the `wanted` artifacts (model, bundle, bundle-int8, ...) and what they need."""
    calibration = root / "calibration.jsonl"
    write_calibration(calibration)
    return make_all(steps(name, root, max_tokens, calibration), root, wanted, log)


def make_all(steps: Sequence[Step], root: Path, wanted: set[str], log: Callable[[str], None]) -> Prepared:
    """Make the `wanted` artifacts and the model that they are made from."""
    prepared = Prepared()
    for step in steps:
        prepared.paths[step.artifact] = step.out
        if step.artifact in wanted | {"model"}:
            reason = prepared.reasons.get("model") or make(step, root / "logs", log)
            if reason:
                prepared.reasons[step.artifact] = reason
    return prepared


def make_model(kind: str, geometry: Geometry, out: Path) -> Step:
    """Return the step that writes random weights. kind: of make_models."""
    command = [str(DEV), "-m", "loadtests.bench.make_models", "--kind", kind]
    command += ["--geometry", geometry.model_dump_json(), "--out", str(out)]
    return Step("model", out, command, MODEL_SOURCES)


def steps(name: str, root: Path, max_tokens: int, calibration: Path) -> list[Step]:
    model = root / "models" / name
    export = [str(DEV), "-m", "export", "--model", str(model), "--max-tokens", str(max_tokens)]
    # The weights are random: the verdicts that a lower precision flips mean nothing, only its speed is wanted.
    lower = ["--calibration", str(calibration), "--max-weighted-flips", "1", "--precision"]
    variants = {"": [], "-plain": ["--graph", "plain"], "-int8": [*lower, "int8"], "-bf16": [*lower, "bf16"]}
    # A bundle for each variant: one that its gate refuses takes no other with it.
    bundles = [
        Step(f"bundle{suffix}", out, [*export, *options, "--out", str(out)], (*MODEL_SOURCES, "export", "tinyrm"))
        for suffix, options in variants.items()
        for out in [root / "bundles" / f"{name}{suffix}"]
    ]
    stock = root / "stock" / name
    worker = "loadtests.bench.workers.optimum_ort"
    stock_export = [str(OPTIMUM), "-m", worker, "--model", str(model), "--export-to", str(stock)]
    return [
        make_model("masked-lm", GEOMETRIES[name], model),
        *bundles,
        Step("stock", stock, stock_export, (*MODEL_SOURCES, "loadtests/bench/workers/optimum_ort.py")),
    ]


def make(step: Step, logs: Path, log: Callable[[str], None]) -> str:
    """Run the command unless the same sources made the folder. Return the reason if it fails, or an empty string."""
    stamp = logs.parent / "stamps" / f"{step.artifact}-{step.out.name}"
    digest = sources_digest(step)
    if step.out.is_dir() and stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return ""
    log(f"  making {step.artifact} of {step.out.name}")
    logs.mkdir(parents=True, exist_ok=True)
    file = logs / f"make-{step.artifact}-{step.out.name}.log"
    try:
        with file.open("w", encoding="utf-8") as output:
            subprocess.run(  # noqa: S603  # the commands are those above
                step.command, stdout=output, stderr=subprocess.STDOUT, timeout=TIMEOUT_S, check=True
            )
    except OSError as error:
        return f"{step.command[0]} cannot be started: {error.strerror}"
    except subprocess.SubprocessError:
        lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["its log is empty"]
        return f"could not be made: {lines[-1][:200]}"
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(digest, encoding="utf-8")
    return ""


def sources_digest(step: Step) -> str:
    """Return a hash of the command and of every source file behind it."""
    found = hashlib.sha256(json.dumps(step.command).encode())
    for source in map(Path, step.sources):
        for file in [source] if source.is_file() else sorted(source.rglob("*.py")):
            found.update(file.read_bytes())
    return found.hexdigest()


def write_calibration(path: Path) -> None:
    """Write a few pairs of random words: enough for ranges."""
    dice = random.Random(17)

    def text(count: int) -> str:
        return " ".join(dice.choices(WORDS, k=count))

    pairs = [{"prompt": text(30), "chosen": text(60), "rejected": text(60)} for _ in range(CALIBRATION_PAIRS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
