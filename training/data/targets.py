"""What teachers gave, kept in files: FOLDER/TEACHER/*.jsonl.gz, one line a pair, `["key of the pair", margin]`.

TEACHER is the teacher's identity, so another revision of it has another folder. Each file is a part that was scored at
once and appears whole: an interrupted scoring goes on after its last part, and processes never write to the same file.
"""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

from tinyrm.errors import InvalidInput
from tinyrm.files import write_atomically
from tinyrm.pairs import PreferencePair
from tinyrm.tables import read_jsonl
from tinyrm.truncation import kept_under
from training.data.cleaning import digest


def pair_key(instruction: str, pair: PreferencePair) -> str:
    """Return what a teacher's margin is kept under: a digest of all that it reads."""
    kept = kept_under(instruction)
    return digest(*([] if kept == "start" else [kept]), instruction, pair.prompt, pair.chosen, pair.rejected).hex()


def read_targets(folder: Path) -> dict[str, float]:
    """Return key -> margin of one teacher; empty if there is no such folder. Raises InvalidInput for a damaged file."""
    known: dict[str, float] = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        try:
            known |= {str(key): float(margin) for key, margin in read_jsonl(path)}
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"{path} is not a file of targets: {error}; delete it to score its pairs again"
            ) from error
    return known


def write_targets(folder: Path, targets: Mapping[str, float]) -> None:
    """Add one part, which is named after its keys."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(item) + "\n" for item in targets.items())
    write_atomically(folder / f"{digest(*targets).hex()}.jsonl.gz", gzip.compress(lines.encode(), mtime=0))
