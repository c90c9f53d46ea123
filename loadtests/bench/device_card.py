"""What a GPU can do: its data sheet, and the rates that it is seen to reach."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tinyrm.flops import Geometry

# Dense bf16 in operations a second, and bytes of memory a second, by a part of the card's name. From the vendor's data
# sheets, without sparsity; the first that fits counts.
DATA_SHEETS = (
    ("B200", 2250e12, 8.0e12),
    ("H200", 989e12, 4.8e12),
    ("H100 PCIe", 756e12, 2.0e12),
    ("H100 NVL", 835e12, 3.9e12),
    ("H100", 989e12, 3.35e12),
    ("A100", 312e12, 2.0e12),
    ("L40S", 362e12, 0.864e12),
    ("L4", 121e12, 0.3e12),
    ("A10G", 70e12, 0.6e12),
    ("RTX 4090", 165e12, 1.008e12),
)
COPIED_BYTES = {"cuda": 2**30, "cpu": 2**24}
LARGE_SIDE = {"cuda": 8192, "cpu": 256}
CALLS_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class Rates:
    """Limits of a device.

    flops_per_s, bytes_per_s: measured, a product of large matrices and a copy (read and written bytes).
    """

    flops_per_s: float
    bytes_per_s: float

    def floor_s(self, flops: float, read_bytes: float) -> float:
        """Return the shortest time for so much work."""
        return max(flops / self.flops_per_s, read_bytes / self.bytes_per_s)


def describe(device: torch.device) -> dict[str, Any]:
    """Return what the results are of."""
    found: dict[str, Any] = {"name": "CPU", "torch": torch.__version__, "cuda": torch.version.cuda}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "name": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
        }
    sheet = data_sheet(found["name"])
    return found | {"sheet_flops_per_s": sheet and sheet[0], "sheet_bytes_per_s": sheet and sheet[1]}


def data_sheet(name: str) -> tuple[float, float] | None:
    """Return operations and bytes a second; None for a card that is not listed."""
    return next(((flops, size) for part, flops, size in DATA_SHEETS if part in name), None)


def measure_rates(device: torch.device, dtype: torch.dtype, budget_s: float) -> Rates:
    """Measure one large product and one large copy."""
    side = LARGE_SIDE[device.type]
    source = torch.empty(COPIED_BYTES[device.type], dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copy_s = seconds_of(lambda: target.copy_(source), device, budget_s / 2)
    return Rates(product_rate((side, side, side), device, dtype, budget_s / 2), 2 * len(source) / copy_s)


def products(geometry: Geometry, tokens: int) -> dict[str, tuple[int, int, int]]:
    """Return the products (rows, inner, columns) of a layer by their names."""
    h, i = geometry.hidden, geometry.intermediate
    return {
        "q, k and v": (tokens, h, 3 * h),
        "attention's way out": (tokens, h, h),
        "gate and input": (tokens, h, 2 * i),
        "the MLP's way out": (tokens, i, h),
    }


def product_rate(shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype, budget_s: float) -> float:
    """Return operations a second of a product of random matrices: zeros run faster than data."""
    rows, inner, columns = shape
    a = torch.randn(rows, inner, device=device).to(dtype)
    weight = torch.randn(columns, inner, device=device).to(dtype)
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    return 2 * rows * inner * columns / seconds_of(lambda: torch.mm(a, weight.t(), out=out), device, budget_s)


def seconds_of(call: Callable[[], object], device: torch.device, budget_s: float) -> float:
    """Return the median seconds of a call, from several calls in a row at a time, so that launches overlap."""
    for _ in range(3):
        call()
    found: list[float] = []
    end = time.perf_counter() + budget_s
    while len(found) < 3 or time.perf_counter() < end:
        started = wait(device)
        for _ in range(CALLS_AT_ONCE):
            call()
        found.append((wait(device) - started) / CALLS_AT_ONCE)
    return sorted(found)[len(found) // 2]


def wait(device: torch.device) -> float:
    """Return the time once the device has done what is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
