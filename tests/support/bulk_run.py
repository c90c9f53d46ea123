"""Run `tinyrm score --bundle` as tests need it."""

import gzip
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import REPOSITORY
from tests.support.processes import PATIENCE_S

Score = Callable[..., int]


def pair(number: int) -> dict[str, Any]:
    words = "yes 1 " * (number % 7 + 1)
    return {"id": f"x{number}", "prompt": f"What is {number}?", "chosen": words, "rejected": "no 0", "other": [number]}


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
        return path
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def words_of(bundle: Path, out: Path, *words: object) -> list[str]:
    engine = ("--bundle", bundle, "--out", out, "--engine", "onnxruntime-cpu", "--threads", "1")
    return ["score", *map(str, (*words, *engine))]


def table(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out).sort_values(["source", "row"]).reset_index(drop=True)


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tinyrm: ")
    return line


def stamps(out: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in out.glob("*.parquet")}


def run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
