"""Parquet as output: a folder with one file for each shard, which is its own checkpoint.

The name of a file follows from its shard: a shard is done if its file exists, and scoring it twice leaves one file.
`_run.json` records the model, the options and the sources of the run.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tinyrm.bulk.jsonl import output_errors
from tinyrm.bulk.sources import Shard
from tinyrm.comparison import Preference
from tinyrm.encoding import Encoding, Truncation
from tinyrm.errors import InvalidInput
from tinyrm.files import locked, write_atomically

# Readers of a folder of Parquet files skip names that begin with _ or a dot.
RUN_FILE, LOCK_FILE = "_run.json", "_lock"
# Files that `write_atomically` leaves behind if it is killed.
UNFINISHED = (f".{RUN_FILE}.*", ".*.parquet.*")
METADATA_KEY = b"tinyrm"

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("model", pa.string()),
        # Label logits of each response; the end of the name is the order.
        ("logit_a_reading_a_first", pa.float32()),
        ("logit_b_reading_a_first", pa.float32()),
        ("logit_a_reading_b_first", pa.float32()),
        ("logit_b_reading_b_first", pa.float32()),
        # Of a model that reads one response or a set, which has no orders.
        ("logit_a", pa.float32()),
        ("logit_b", pa.float32()),
        ("probability_a", pa.float64()),
        ("margin", pa.float64()),
        ("confidence", pa.string()),
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
class Row:
    """A row that was read.

    number: in its source, from 0.
    domain: its name in the model; empty if there is an error.
    sequences: A first, B first; A, B of a model that reads one response; one of a model that reads sets; none if
        there is an error.
    truncation: tokens dropped from the texts.
    error: type of the error.
    error_message: text of the error.
    """

    number: int
    id: str | None
    domain: str = ""
    sequences: tuple[Encoding, ...] = ()
    truncation: Truncation = field(default_factory=Truncation)
    error: str | None = None
    error_message: str | None = None


@dataclass(frozen=True, slots=True)
class ShardStats:
    """Counts of a shard; tokens and FLOPs are of all sequences of each row, without padding."""

    rows: int
    errors: int
    tokens: int
    flops: int


def make_table(shard: Shard, model: str, rows: Sequence[Row], scores: Sequence[Score | None]) -> pa.Table:
    """Return the table of a shard, in the order of its rows. A row with an error has no logits and no score."""
    records = []
    for row, score in zip(rows, scores, strict=True):
        truncation = row.truncation
        record = {
            "source": shard.source,
            "row": row.number,
            "id": row.id,
            "model": model,
            "tokens": sum(map(len, row.sequences)),
            "truncated_prompt": truncation.prompt,
            "truncated_response_a": truncation.response_a,
            "truncated_response_b": truncation.response_b,
            "error": row.error,
            "error_message": row.error_message,
        }
        if score is not None:
            logits, preference = score
            record |= name_logits(logits) | {
                "probability_a": preference.p_a,
                "margin": preference.margin,
                "confidence": preference.confidence,
            }
        records.append(record)
    return pa.Table.from_pylist(records, schema=SCHEMA)


def name_logits(logits: NDArray[np.float32]) -> dict[str, float]:
    """Return the columns of one row's logits: [2 orders, 2], or [2 responses, 1]."""
    if logits.shape[1] == 1:
        return dict(zip(("logit_a", "logit_b"), logits[:, 0].tolist(), strict=True))
    (a_first, b_second), (b_first, a_second) = logits.tolist()
    return {
        "logit_a_reading_a_first": a_first,
        "logit_b_reading_a_first": b_second,
        "logit_a_reading_b_first": a_second,
        "logit_b_reading_b_first": b_first,
    }


def shard_file(folder: Path, shard: Shard) -> Path:
    return folder / f"{hashlib.sha256(shard.source.encode()).hexdigest()[:16]}-{shard.first_row:012d}.parquet"


def read_stats(folder: Path, shard: Shard) -> ShardStats | None:
    """Return the counts of a shard that an earlier run scored; None if there is none. Raises InvalidInput."""
    file = shard_file(folder, shard)
    try:
        return ShardStats(**json.loads(pq.read_schema(file).metadata[METADATA_KEY]))
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{file} does not belong to this run; remove it to score its rows again: {error}") from error


def write(folder: Path, shard: Shard, table: pa.Table, stats: ShardStats) -> None:
    """Write a shard's table as a whole or not at all, even if the power fails."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(asdict(stats))}), buffer)
    write_atomically(shard_file(folder, shard), buffer.getvalue().to_pybytes())


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Lock the folder, created if it is missing, for this process. Raises InvalidInput if another process has it."""
    with ExitStack() as held:
        with output_errors(folder, "folder"):
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder / LOCK_FILE, wait=False))
        yield


def claim(folder: Path, run: Mapping[str, Any]) -> None:
    """Begin a run in a locked folder, or continue it. Raises InvalidInput if the folder belongs to something else."""
    unfinished = [path for pattern in UNFINISHED for path in folder.glob(pattern)]
    file = folder / RUN_FILE
    if file.exists():
        try:
            before = dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InvalidInput(f"{file} cannot be read; name another folder: {error}") from error
        for name in sorted(before.keys() | run.keys()):
            old, new = before.get(name), run.get(name)
            if old != new:
                how = _sources_differ(old, new) if name == "sources" else f"{name} was {old!r} and is {new!r}"
                raise InvalidInput(
                    f"--out {folder} belongs to another run: {how}; name another folder, or remove this one"
                )
    elif {path.name for path in folder.iterdir()} - {LOCK_FILE, *(path.name for path in unfinished)}:
        raise InvalidInput(f"--out {folder} holds something else; name a folder that is empty or does not exist")
    else:
        write_atomically(file, json.dumps(run, indent=2) + "\n")
    for path in unfinished:
        path.unlink(missing_ok=True)


def _sources_differ(old: Any, new: Any) -> str:
    old, new = (dict(sources) if isinstance(sources, dict) else {} for sources in (old, new))
    for source in sorted(old.keys() | new.keys()):
        if source not in new:
            return f"{source} was among its sources and is missing now"
        if source not in old:
            return f"{source} was not among its sources"
        if old[source] != new[source]:
            return f"{source} has changed since"
    return "its sources differ"
