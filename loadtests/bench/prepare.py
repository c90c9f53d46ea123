"""Makes what is compared, under runs/bench: random weights, our bundles, the stock export. Kept between runs."""

import hashlib
import json
import random
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from loadtests.bench.geometry import Geometry
from loadtests.bench.shapes import Special

DEV, OPTIMUM = ".venv/dev/bin/python", ".venv/bench-optimum/bin/python"
STARTER = Path("models/starter")
# The weights are random: which answers a lower precision flips says nothing, only its speed is wanted.
ANY_FLIPS = ["--max-flips", "1"]
CALIBRATION_PAIRS = 16
PATIENCE_S = 3600


@dataclass(slots=True)
class Prepared:
    """paths: by what it is. reasons: why something could not be made."""

    paths: dict[str, Path] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """A folder, the command that makes it, and the sources and inputs whose change makes it stale."""

    what: str
    out: Path
    command: list[str]
    sources: tuple[str, ...]


def read_special(bundle: Path = STARTER) -> Special:
    """Ids of the tokenizer that all geometries share."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    ids, (first, second) = manifest["special_tokens"], manifest["label_ids"]
    return Special(
        ids["cls"], ids["sep"], ids["pad"], ids["mask"], (first, second), vocab=manifest["geometry"]["vocab"]
    )


def prepare(geometry: Geometry, root: Path, wanted: set[str], longest: int, say: Callable[[str], None]) -> Prepared:
    """What `wanted` names (model, classifier, bundle, bundle-int8, ...), and what that needs."""
    calibration = root / "calibration.jsonl"
    write_calibration(calibration)
    prepared = Prepared()
    for step in steps(geometry, root, longest, calibration):
        prepared.paths[step.what] = step.out
        if step.what in wanted | {"model"}:
            reason = prepared.reasons.get("model") or make(step, root / "logs", say)
            if reason:
                prepared.reasons[step.what] = reason
    prepared.paths["classifier"] = root / "classifiers" / geometry.name
    if "model" in prepared.reasons:
        prepared.reasons["classifier"] = prepared.reasons["model"]
    return prepared


def steps(geometry: Geometry, root: Path, longest: int, calibration: Path) -> list[Step]:
    name = geometry.name
    model, classifier = root / "models" / name, root / "classifiers" / name
    weights = [DEV, "-m", "loadtests.bench.make_models", "--geometry", json.dumps(asdict(geometry)), "--bundle"]
    weights += [str(STARTER), "--masked-lm", str(model), "--classifier", str(classifier)]
    export = [DEV, "-m", "export", "--model", str(model), "--max-tokens", str(longest)]
    lower = ["--calibration", str(calibration), *ANY_FLIPS, "--precision"]
    variants = {"": [], "-plain": ["--graph", "plain"], "-int8": [*lower, "int8"], "-bf16": [*lower, "bf16"]}
    own = ("loadtests/bench/make_models.py",)
    bundles = [
        # A bundle for each variant: one that its gate refuses takes no other with it.
        Step(f"bundle{suffix}", out, [*export, *options, "--out", str(out)], (*own, "export", "tinyrm"))
        for suffix, options in variants.items()
        for out in [root / "bundles" / f"{name}{suffix}"]
    ]
    stock = [OPTIMUM, "-m", "loadtests.bench.make_stock_export", "--model", str(model), "--out"]
    out = root / "stock" / name
    return [
        Step("model", model, weights, own),
        *bundles,
        Step("stock", out, [*stock, str(out)], (*own, "loadtests/bench/make_stock_export.py")),
    ]


def make(step: Step, logs: Path, say: Callable[[str], None]) -> str:
    """Run the command unless that was done by the same sources. Empty, or the reason why there is nothing."""
    stamp = logs.parent / "stamps" / f"{step.what}-{step.out.name}"
    digest = sources_digest(step)
    if step.out.is_dir() and stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return ""
    say(f"  making {step.what} of {step.out.name}")
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"make-{step.what}-{step.out.name}.log"
    try:
        with log.open("w", encoding="utf-8") as output:
            subprocess.run(  # noqa: S603  # the commands are those above
                step.command, stdout=output, stderr=subprocess.STDOUT, timeout=PATIENCE_S, check=True
            )
    except OSError as error:
        return f"{step.command[0]} cannot be started: {error.strerror}"
    except subprocess.SubprocessError:
        return f"could not be made: {last_line(log)}"
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(digest, encoding="utf-8")
    return ""


def sources_digest(step: Step) -> str:
    """Of the command and every source file behind it."""
    found = hashlib.sha256(json.dumps(step.command).encode())
    for source in map(Path, step.sources):
        for file in [source] if source.is_file() else sorted(source.rglob("*.py")):
            found.update(file.read_bytes())
    return found.hexdigest()


def last_line(log: Path) -> str:
    lines: Sequence[str] = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
    return lines[-1][:200]


def write_calibration(path: Path) -> None:
    """A few pairs of random words: enough for ranges, and nobody's answers."""
    rng = random.Random(17)
    words = ["the", "of", "river", "seven", "light", "answer", "small", "under", "green", "walk"]

    def text(count: int) -> str:
        return " ".join(rng.choices(words, k=count))

    pairs = [{"prompt": text(30), "chosen": text(60), "rejected": text(60)} for _ in range(CALIBRATION_PAIRS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
