"""What `tinyrm train PAIRS` chooses by itself, each choice with its reason: by the pairs, the base and the machine.

Pure: `Situation` in, `Choice`s out. training/recipes/finetune.yaml is the ground that they change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tinyrm.manifest import SetReading
from tinyrm.spec import HeadKind

Reads = Literal["pair", "response", "set"]

GPU_BASE = "answerdotai/ModernBERT-base"
CPU_BASE = "sentence-transformers/all-MiniLM-L6-v2"

# Pairs below which a row applies -> share held out, epochs, pairs a step. Few pairs need many passes in small steps,
# and a large share of them to see whether anything was learnt; many pairs are passed over once.
BY_PAIRS: tuple[tuple[float, float, int, int], ...] = (
    (500, 0.25, 6, 16),
    (2_000, 0.2, 5, 16),
    (10_000, 0.1, 3, 32),
    (50_000, 0.05, 2, 64),
    (float("inf"), 0.02, 1, 128),
)
# Parameters below which a row applies -> peak learning rate of all weights, and of an adapter. A small model tolerates
# larger steps: 2.5e-4 is the starter's (22.7 M), and about 8e-5 the paper's for ModernBERT, at 128 pairs a step.
BY_PARAMETERS: tuple[tuple[float, float, float], ...] = (
    (50e6, 2.5e-4, 1e-3),
    (250e6, 5e-5, 4e-4),
    (float("inf"), 3e-5, 2e-4),
)
# Bytes of a weight that learns: itself, a cast copy, its gradient and Adam's two moments.
BYTES_PER_WEIGHT = 18
# Both orders of a pair are in one pass, so that it has an even number of sequences.
UNIT = 2
# Parameters above which a CPU learns the upper layers only: more would take days.
MAX_CPU_PARAMETERS = 50e6
# Tokens of a sequence that a CPU learns from: 512 would take more than twice the time.
CPU_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Base:
    """What a base is, as its configuration describes it.

    layers, parameters, positions: its sizes; positions is the largest number of tokens.
    has_masked_lm: whether it has the head of a masked LM, which fills a mask; otherwise it is a body alone.
    head: the head that a run of training gave it; None for a published model.
    sets: how it reads sets, if a run taught it to.
    """

    model: str
    model_type: str
    layers: int
    parameters: int
    positions: int
    has_masked_lm: bool
    head: HeadKind | None = None
    sets: SetReading | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware that trains.

    device: cpu, cuda, mps, ...
    memory: bytes of one accelerator; 0 if unknown.
    """

    device: str
    memory: int = 0
    has_bf16: bool = False
    processes: int = 1


@dataclass(frozen=True, slots=True)
class Choice:
    """A value of a recipe and why it was chosen. key: as `--set` has it."""

    key: str
    value: Any
    why: str


def default_base(machine: Machine) -> Choice:
    """Return the base to train if the user names none."""
    if machine.device == "cpu":
        return Choice("model", CPU_BASE, "no GPU: 22.7 million parameters learn in minutes on a CPU")
    return Choice(
        "model", GPU_BASE, f"a GPU ({machine.device}): it learns more than a small model, and reads 8,192 tokens"
    )


def choose(
    base: Base, machine: Machine, pairs: int, reads: Reads | None = None, *, epochs: float | None = None
) -> list[Choice]:
    """Return every value that depends on the base, the machine or the number of pairs, in the order of a recipe.

    reads: how the user wants responses to be read; None: as suits the base.
    epochs: how many the user wants; None: as suits the number of pairs.
    """
    held_out, usual_epochs, per_step = next(row[1:] for row in BY_PAIRS if pairs < row[0])
    count = f"{pairs:,} pairs"
    choices = choose_reading(base, reads)
    head = next(choice.value for choice in choices if choice.key == "head")
    return [
        *choices,
        *choose_lengths(base, machine),
        Choice("held_out_fraction", held_out, f"{count}: enough to measure on, the rest to learn from"),
        *(learning := choose_learning(base, machine)),
        *choose_batch(machine, per_step, 1 if head == "set" else 2, count),
        Choice("optimization.epochs", usual_epochs, f"{count}: the fewer, the more passes"),
        choose_rate(base, per_step, is_adapter=any(c.key == "dora" and c.value for c in learning)),
        *choose_intervals(pairs * (1 - held_out), per_step, usual_epochs if epochs is None else epochs),
    ]


def choose_reading(base: Base, reads: Reads | None) -> list[Choice]:
    """Return head, sets and new_head."""
    kinds: dict[str, HeadKind] = {
        "pair": "cloze" if base.has_masked_lm else "pair-cls",
        "response": "pointwise",
        "set": "set",
    }
    if base.head is not None and (reads is None or kinds[reads] == base.head):
        head, why = base.head, "as the run did that trained the base"
    elif reads is not None:
        head, why = kinds[reads], f"--reads {reads}"
    elif base.has_masked_lm:
        head, why = kinds["pair"], "the base fills a mask, and its own head reads the preference there"
    elif base.model_type == "bert":
        head, why = kinds["set"], "the base has no head: each response is read at the mean of its tokens"
    else:
        head, why = kinds["response"], "the base has no head: each response is read by itself"
    sets = None
    if head == "set":
        # A base without a masked LM was made for embeddings, which are means; one with it is read at a mask.
        sets = base.sets or SetReading(others="none", read_at="mask" if base.has_masked_lm else "mean")
    is_new = not base.has_masked_lm and base.head is None
    return [
        Choice("head", head, why),
        Choice(
            "sets",
            sets and sets.model_dump(exclude_none=True),
            "scores that do not depend on the other responses" if sets else why,
        ),
        Choice("new_head", is_new, "the base is a body alone" if is_new else "the base has the weights of a head"),
        Choice("attention_dropout", 0 if base.model_type == "bert" else None, "the fastest attention has none"),
    ]


def choose_lengths(base: Base, machine: Machine) -> list[Choice]:
    """Return the token budgets of serving and of training."""
    budget = 1024 if machine.device == "cpu" else 2048
    choices = [
        Choice(
            "spec.max_tokens",
            min(base.positions, budget),
            f"the base has {base.positions:,} positions"
            if base.positions <= budget
            else f"what a {machine.device} reads in reasonable time, of {base.positions:,} positions",
        )
    ]
    shorter = CPU_TOKENS if machine.device == "cpu" and base.positions > CPU_TOKENS else None
    why = "a CPU trains twice as fast as with 512; serving reads all" if shorter else "training reads what serving does"
    return [*choices, Choice("train_max_tokens", shorter, why)]


def choose_learning(base: Base, machine: Machine) -> list[Choice]:
    """Return which weights learn, and in which precision."""
    dora, dora_why, frozen, frozen_why = None, "all weights fit into memory", 0, "every layer learns"
    if machine.memory and BYTES_PER_WEIGHT * base.parameters > machine.memory / 2:
        dora, dora_why = {"rank": 64, "alpha": 64}, "all weights would take more than half of the GPU's memory"
    if machine.device == "cpu":
        is_large = base.parameters > MAX_CPU_PARAMETERS
        frozen = base.layers * 2 // 3 if is_large else base.layers // 3
        frozen_why = "the lowest layers of a base change least, and a CPU saves their backward pass"
    bf16 = machine.device == "cuda" and machine.has_bf16
    return [
        Choice("dora", dora, dora_why),
        Choice("frozen_layers", frozen, frozen_why),
        Choice(
            "optimization.precision",
            "bf16" if bf16 else "fp32",
            "the GPU computes it" if bf16 else f"bf16 is slower or absent on this {machine.device}",
        ),
    ]


def choose_batch(machine: Machine, pairs: int, per_pair: int, count: str) -> list[Choice]:
    """Return the sequences of a step and those of one pass; how many fit on a GPU is decided later, by its memory.

    per_pair: sequences of a pair.
    """
    unit = UNIT * machine.processes
    batch = -(-pairs * per_pair // unit) * unit
    micro = max_micro_batch(batch // machine.processes, 16 if machine.device == "cpu" else 64)
    several = f" over {machine.processes} processes" if machine.processes > 1 else ""
    return [
        Choice("optimization.batch_size", batch, f"{count}: {batch // per_pair} pairs a step{several}"),
        Choice("optimization.micro_batch_size", micro, "what one pass holds in memory"),
    ]


def max_micro_batch(per_process: int, limit: int) -> int:
    """Return the largest part of a process's batch that is at most `limit`, divides it and is even."""
    return max(part for part in range(UNIT, max(limit, UNIT) + 1, UNIT) if per_process % part == 0)


def choose_rate(base: Base, per_step: int, *, is_adapter: bool) -> Choice:
    """Return the peak learning rate, smaller for small steps: their gradients are noisier."""
    whole, adapter = next(row[1:] for row in BY_PARAMETERS if base.parameters < row[0])
    rate = (adapter if is_adapter else whole) * min(1.0, (per_step / 32) ** 0.5)
    what = "an adapter" if is_adapter else "all weights"
    return Choice(
        "optimization.peak_lr",
        float(f"{rate:.1e}"),
        f"{what} of {base.parameters / 1e6:.0f} million parameters, {per_step} pairs a step",
    )


def choose_intervals(learned: float, per_step: int, epochs: float) -> list[Choice]:
    """Return how often a checkpoint is written, and the held-out pairs are measured."""
    steps = max(1, int(learned / per_step * epochs))
    every = min(500, max(10, steps // 4))
    lost = f"about {steps:,} steps in all: an interruption loses {min(every, steps)} at most"
    return [
        Choice("optimization.save_steps", every, lost),
        Choice("optimization.eval_steps", every, "held-out pairs are measured as often, and at the end"),
    ]


def as_values(choices: Sequence[Choice]) -> dict[str, Any]:
    """Return choices as the nested values of a recipe."""
    values: dict[str, Any] = {}
    for choice in choices:
        *sections, last = choice.key.split(".")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = choice.value
    return values
