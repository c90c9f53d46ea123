"""Hardware that people train on, and what a run needs there: memory, the largest micro batch, hours, money.

Peak operations are those of the makers' data sheets, dense, with sums in fp32: bf16, and fp32 without tensor cores.
Memory is what a program can use. Prices are examples, in US dollars an hour without a contract; they differ by a
factor of three between providers and fall over time, so a dry run takes yours (`--price-per-hour`).

The time is operations / (peak * share). Nobody reaches the peak: large products come to half of it, small models on
short texts to a fifth. The quarter that is assumed for GPUs is not a measurement of ours. The third for CPUs is: the
starter's training, 470 TFLOP in fp32, takes about an hour on two cores with 64 operations a cycle each.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from tinyrm.errors import InvalidInput
from training.experiments.step_cost import Sharing, StepCost
from training.recipe import ClozeRecipe

SHARE_OF_GPU_PEAK = 0.25
SHARE_OF_CPU_PEAK = 0.33
# Of the memory; the rest is for the library, temporary results and gaps between blocks.
USABLE_SHARE = 0.9
GIB = 2**30
# Fields of the Trainer, the older name last.
CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")


@dataclass(frozen=True, slots=True)
class Hardware:
    """Devices of one machine.

    gib: memory of one device.
    bf16, fp32: peak of one device, operations a second.
    dollars: an hour of all devices. source: where and when that price was read.
    """

    name: str
    title: str
    gib: float
    bf16: float
    fp32: float
    dollars: float
    source: str
    devices: int = 1

    @property
    def is_cpu(self) -> bool:
        return self.name == "laptop"

    def rate(self, recipe: ClozeRecipe) -> float:
        """Return the operations a second that all devices together are assumed to do."""
        peak = self.bf16 if recipe.optimization.precision == "bf16" else self.fp32
        return self.devices * peak * (SHARE_OF_CPU_PEAK if self.is_cpu else SHARE_OF_GPU_PEAK)


TERA = 1e12
RENTED = "specialised clouds, on demand, May 2026"
HARDWARE = (
    # Two cores of 3 GHz with two units of eight fp32 multiply-adds each; bf16 is no faster on most of them.
    Hardware("laptop", "laptop, 2 CPU cores", 12, 0.192 * TERA, 0.192 * TERA, 0.0, "your own"),
    Hardware("rtx4090", "RTX 4090", 23.5, 165 * TERA, 82.6 * TERA, 0.60, "marketplaces, on demand, March 2026"),
    Hardware("l4", "L4", 22, 121 * TERA, 30.3 * TERA, 0.80, "marketplaces, on demand, March 2026"),
    Hardware("a10g", "A10G", 22, 70 * TERA, 35 * TERA, 1.01, "AWS g5.xlarge, on demand, June 2026"),
    Hardware("a100-40", "A100 40 GB", 39.4, 312 * TERA, 19.5 * TERA, 1.30, RENTED),
    Hardware("a100-80", "A100 80 GB", 79.2, 312 * TERA, 19.5 * TERA, 1.50, RENTED),
    Hardware("h100", "H100 80 GB", 79.1, 989 * TERA, 67 * TERA, 3.50, RENTED),
    Hardware("h200", "H200 141 GB", 139.8, 989 * TERA, 67 * TERA, 4.50, RENTED),
    Hardware("8xh100", "8 x H100 80 GB", 79.1, 989 * TERA, 67 * TERA, 28.00, RENTED, devices=8),
)


@dataclass(frozen=True, slots=True)
class Work:
    """What a run has to compute.

    training, recomputed, evaluation: operations of training, of what checkpointing adds to it, and of evaluation; zeros
        if the number of steps is not known.
    longest: tokens of the longest sequence, which is in the first batch.
    """

    longest: int
    training: float
    recomputed: float
    evaluation: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A run on some hardware.

    gib: memory of a device with the recipe as it is; None if it does not divide the batch of these devices.
    fits: whether the device has it.
    micro_batch, with_checkpointing: the largest one that fits, without and with checkpointing; None if none does.
    hours: of the whole run, with checkpointing if nothing else fits; None if nothing fits or the steps are not known.
    """

    hardware: Hardware
    sharing: Sharing
    gib: float | None
    fits: bool
    micro_batch: int | None
    with_checkpointing: int | None
    hours: float | None

    @property
    def dollars(self) -> float | None:
        return None if self.hours is None else self.hours * self.hardware.dollars


def chosen(names: tuple[str, ...], price_per_hour: float | None) -> tuple[Hardware, ...]:
    """Return hardware by name, or all; at another price if one is given. Raises InvalidInput for an unknown name."""
    known = {each.name: each for each in HARDWARE}
    if unknown := [name for name in names if name not in known]:
        raise InvalidInput(f"hardware {unknown[0]!r} is not known; known: {', '.join(known)}")
    found = tuple(known[name] for name in names) or HARDWARE
    if price_per_hour is None:
        return found
    if len(found) != 1:
        raise InvalidInput("--price-per-hour is the price of one --hardware; name it")
    return (replace(found[0], dollars=price_per_hour, source="as given"),)


def fits(hardware: Hardware, recipe: ClozeRecipe, cost: StepCost, work: Work) -> Iterator[Fit]:
    """Yield how the run fits: on several devices with all weights on each (DDP), and with a part of them (FSDP)."""
    sharings: tuple[Sharing, ...] = ("DDP", "FSDP") if hardware.devices > 1 else ("",)
    sizes = micro_batches(recipe, hardware.devices)
    own = recipe.optimization.micro_batch_size
    is_checkpointed = any(recipe.trainer.get(name) for name in CHECKPOINTING)
    room = USABLE_SHARE * hardware.gib * GIB
    for sharing in sharings:
        needs = partial(cost.memory, tokens=work.longest, sharing=sharing, devices=hardware.devices)
        plain = next((rows for rows in sizes if needs(rows) <= room), None)
        checkpointed = next((rows for rows in sizes if needs(rows, checkpointing=True) <= room), None)
        hours = None
        if work.training and (plain or checkpointed):
            operations = work.training + work.evaluation + (work.recomputed if is_checkpointed or not plain else 0)
            hours = operations / hardware.rate(recipe) / 3600
        bytes_as_it_is = needs(own, checkpointing=is_checkpointed) if own in sizes else None
        gib = None if bytes_as_it_is is None else bytes_as_it_is / GIB
        is_enough = bytes_as_it_is is not None and bytes_as_it_is <= room
        yield Fit(hardware, sharing, gib, is_enough, plain, checkpointed, hours)


def micro_batches(recipe: ClozeRecipe, devices: int) -> list[int]:
    """Return the micro batches that make up the batch on these devices, the largest first."""
    batch = recipe.optimization.batch_size
    step = 2 if recipe.rows_per_pair == 2 else 1
    share = batch // devices
    return [rows for rows in range(share, 0, -1) if batch % (rows * devices) == 0 and rows % step == 0]


def duration(hours: float) -> str:
    """Return a time for people: 40 s, 12 min, 3.4 h, 5.2 days."""
    if hours < 1 / 60:
        return f"{max(1, math.ceil(hours * 3600))} s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
