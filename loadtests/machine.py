"""Describe the machine that was measured, without names of hosts or users and without paths."""

import os
import platform
import re
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
# Flags that decide how fast matrix products can be.
FLAGS = re.compile(r"avx|amx|fma|f16c|vnni|bf16|asimd|sve|i8mm")


def read_cpuinfo() -> str:
    return CPUINFO.read_text(encoding="utf-8") if CPUINFO.exists() else ""


def describe(cpuinfo: str) -> dict[str, Any]:
    """Return CPU model, usable cores, memory in GiB and the flags that matter."""
    return {
        "cpu": _field(cpuinfo, "model name") or platform.machine(),
        "family": _field(cpuinfo, "cpu family"),
        "model": _field(cpuinfo, "model"),
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "flags": sorted(flag for flag in _flags(cpuinfo) if FLAGS.search(flag)),
        "system": f"{platform.system()} {platform.machine()}",
    }


def usable_cores() -> int:
    return len(os.sched_getaffinity(0))


def has_native_bf16(cpuinfo: str) -> bool:
    """Return whether the CPU has instructions for matrix products in bf16; without them bf16 is only slower."""
    return bool({"avx512_bf16", "amx_bf16"} & _flags(cpuinfo))


def _flags(cpuinfo: str) -> set[str]:
    return set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features") or "").split())


def _field(cpuinfo: str, name: str) -> str | None:
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.+)$", cpuinfo, flags=re.MULTILINE)
    return found.group(1).strip() if found else None
