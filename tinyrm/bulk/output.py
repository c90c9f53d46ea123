"""The folder of scores. One Parquet file for each part, under a name that only that part has: a part that is there is
done, and one that is written twice is one file. `_run.json` says what the files are of."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tinyrm.bulk.rows import Row
from tinyrm.bulk.sources import Part
from tinyrm.comparison import Preference
from tinyrm.errors import InvalidInput

# Readers of a folder of Parquet files pass over names that begin with _ or a dot.
RUN_FILE, LOCK_FILE, UNFINISHED = "_run.json", "_lock", "._"
METADATA_KEY = b"tinyrm"

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("model", pa.string()),
        # Raw label logits: of the response, in the reading in which that response stands first.
        ("logit_a_reading_a_first", pa.float32()),
        ("logit_b_reading_a_first", pa.float32()),
        ("logit_a_reading_b_first", pa.float32()),
        ("logit_b_reading_b_first", pa.float32()),
        ("probability_a", pa.float64()),
        ("margin", pa.float64()),
        ("tokens", pa.int32()),
        ("truncated_prompt", pa.int32()),
        ("truncated_response_a", pa.int32()),
        ("truncated_response_b", pa.int32()),
        ("error", pa.string()),
        ("error_message", pa.string()),
    ]
)

Score = tuple[NDArray[np.float32], Preference]


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a part. tokens, flops: of both readings of each row, padding not counted."""

    rows: int
    errors: int
    tokens: int
    flops: int


def table_of(part: Part, model: str, rows: Sequence[Row], scores: Sequence[Score | None]) -> pa.Table:
    """Rows in their order; what an error has no value for is null."""
    records = [
        {
            "source": part.source,
            "row": row.number,
            "id": row.id,
            "model": model,
            "tokens": sum(map(len, row.readings)),
            "truncated_prompt": row.truncation.prompt,
            "truncated_response_a": row.truncation.response_a,
            "truncated_response_b": row.truncation.response_b,
            "error": row.error,
            "error_message": row.error_message,
            **({} if score is None else _numbers(*score)),
        }
        for row, score in zip(rows, scores, strict=True)
    ]
    return pa.Table.from_pylist(records, schema=SCHEMA)


def part_file(folder: Path, part: Part) -> Path:
    return folder / f"{hashlib.sha256(part.source.encode()).hexdigest()[:16]}-{part.first_row:012d}.parquet"


def done(folder: Path, part: Part) -> Done | None:
    """What an earlier run made of a part; None if it is not there. Raises InvalidInput if the file is no part."""
    file = part_file(folder, part)
    try:
        return Done(**json.loads(pq.read_schema(file).metadata[METADATA_KEY]))
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{file} is no part of this run; remove it, and it is computed again: {error}") from error


def write(folder: Path, part: Part, table: pa.Table, counts: Done) -> None:
    """Whole or not at all, also if the power fails."""
    file = part_file(folder, part)
    unfinished = folder / f"{UNFINISHED}{file.name}-{uuid4().hex}"
    with unfinished.open("wb") as stream:
        pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(asdict(counts))}), stream)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(file)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for one process at a time. Raises InvalidInput if another one has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_FILE).open("w")
    except OSError as error:
        raise InvalidInput(f"--out {folder}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidInput(
                f"--out {folder}: another process is writing there; wait for it, or name another folder"
            ) from error
        yield


def claim(folder: Path, run: Mapping[str, Any]) -> None:
    """Begin a run in a locked folder, or go on with it. Raises InvalidInput if the folder is of something else."""
    file = folder / RUN_FILE
    if file.exists():
        _refuse_another(folder, _read(file), run)
    elif any(path.name != LOCK_FILE and not path.name.startswith(UNFINISHED) for path in folder.iterdir()):
        raise InvalidInput(f"--out {folder} holds something else; name a folder that is empty or does not exist")
    else:
        unfinished = folder / f"{UNFINISHED}{RUN_FILE}"
        unfinished.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(file)
    for left_by_a_kill in folder.glob(f"{UNFINISHED}*"):
        left_by_a_kill.unlink(missing_ok=True)


def _numbers(logits: NDArray[np.float32], preference: Preference) -> dict[str, float]:
    (a_first, b_second), (b_first, a_second) = logits.tolist()
    return {
        "logit_a_reading_a_first": a_first,
        "logit_b_reading_a_first": b_second,
        "logit_a_reading_b_first": a_second,
        "logit_b_reading_b_first": b_first,
        "probability_a": preference.p_a,
        "margin": preference.margin,
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InvalidInput(f"{file} cannot be read; name another folder: {error}") from error


def _refuse_another(folder: Path, before: dict[str, Any], now: Mapping[str, Any]) -> None:
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old != new:
            said = _sources_differ(old, new) if name == "sources" else f"{name} was {old!r} and is {new!r}"
            raise InvalidInput(f"--out {folder} is of another run: {said}; name another folder, or remove this one")


def _sources_differ(old: Any, new: Any) -> str:
    old, new = (dict(sources) if isinstance(sources, dict) else {} for sources in (old, new))
    for source in sorted(old.keys() | new.keys()):
        if source not in new:
            return f"{source} was among its sources and is not now"
        if source not in old:
            return f"{source} was not among its sources"
        if old[source] != new[source]:
            return f"{source} has changed since"
    return "its sources differ"
