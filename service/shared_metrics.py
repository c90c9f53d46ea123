"""Files in which several processes of one service keep their metrics, so that a scrape of any shows those of all.

prometheus_client writes and reads them. They are made in full before a process begins, and outlive it: its counts stay.
"""

import os
from pathlib import Path
from typing import Any

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

# The variable from which prometheus_client takes the folder of metrics that several processes share.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# Its files for each process, and the room that all our series take in them, with some to spare.
SHARED_FILES = {"counter": 1 << 16, "histogram": 1 << 17, "gauge_livesum": 1 << 16, "gauge_livemax": 1 << 12}


def reserve_metrics(folder: Path, process: str) -> None:
    """Make the files of one process, with all their room: a full file system would end it later without a message.

    Raises OSError if there is no room.
    """
    for kind, size in SHARED_FILES.items():
        path = folder / f"{kind}_{process}.db"
        try:
            list(MmapedDict.read_all_values_from_file(path))  # type: ignore[no-untyped-call]
        except Exception:  # noqa: BLE001  # there is none, or its process ended in the middle of a change
            path.write_bytes(bytes(size))


def share_metrics(folder: Path, process: str) -> None:
    """Keep the metrics of this process in files in `folder`, where other processes add theirs. Call it first.

    process: names the files. A process with the name of one that has ended goes on with its counts.

    Raises OSError if there is no room for the files.

    prometheus_client reads the variable only at import, so its ValueClass is set again here. Only the functions for
    shared files rely on its internals; tests/service/test_metrics.py checks that they exist.
    """
    reserve_metrics(folder, process)
    os.environ[SHARED_FOLDER] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: process)  # type: ignore[no-untyped-call]


def forget_process(folder: Path, process: str) -> None:
    """Set the gauges of a process that has ended to zero; its counters stay."""
    for kind in SHARED_FILES:
        path = folder / f"{kind}_{process}.db"
        if kind.startswith("gauge") and path.exists():
            gauges: Any = MmapedDict(path)  # type: ignore[no-untyped-call]
            for key, *_ in list(gauges.read_all_values()):
                gauges.write_value(key, 0.0, 0.0)
            gauges.close()
