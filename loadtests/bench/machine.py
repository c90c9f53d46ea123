"""What the numbers were measured on. No names of hosts or users, no paths."""

import os
import platform
import re
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
TELLING = re.compile(r"avx|amx|fma|f16c|vnni|bf16|asimd|sve|i8mm")


def describe(cpuinfo: str) -> dict[str, Any]:
    """CPU model, usable cores, memory in GiB, and the flags that decide how fast matrix products can be."""
    return {
        "cpu": _field(cpuinfo, "model name") or platform.machine(),
        "family": _field(cpuinfo, "cpu family"),
        "model": _field(cpuinfo, "model"),
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "flags": sorted(flag for flag in _flags(cpuinfo) if TELLING.search(flag)),
        "system": f"{platform.system()} {platform.machine()}",
    }


def read_cpuinfo() -> str:
    return CPUINFO.read_text(encoding="utf-8") if CPUINFO.exists() else ""


def usable_cores() -> int:
    return len(os.sched_getaffinity(0))


def has_native_bf16(cpuinfo: str) -> bool:
    """Whether matrix products in bf16 have instructions of their own; else they only cost."""
    return bool({"avx512_bf16", "amx_bf16"} & _flags(cpuinfo))


def _flags(cpuinfo: str) -> set[str]:
    return set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features") or "").split())


def _field(cpuinfo: str, name: str) -> str | None:
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.+)$", cpuinfo, flags=re.MULTILINE)
    return found.group(1).strip() if found else None
