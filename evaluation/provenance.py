"""The part of a model card that states what a model was made from, each part with its revision and its digest."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from tabulate import tabulate

from tinyrm.manifest import TOKENIZER_FILE, Manifest

SECTION: Final = "provenance"
SHOWN: Final = 12  # characters of a digest or of a commit; the manifest has all of them


class Row(NamedTuple):
    part: str
    name: str
    revision: str | None
    sha256: str | None


def provenance_table(manifest: Manifest) -> str:
    """Return a table of the weights, what these were trained from, the data, the teachers and the calibration pairs."""
    lines = [
        (row.part, row.name or "-", (row.revision or "-")[:SHOWN], (row.sha256 or "-")[:SHOWN])
        for row in dict.fromkeys(rows(manifest))
    ]
    return tabulate(lines, headers=["part", "name", "revision", "sha256"], tablefmt="github", disable_numparse=True)


def rows(manifest: Manifest) -> Iterator[Row]:
    """Yield what a model was made from, its own weights first. What a record lacks, as older ones do, is left out."""
    origin, known = manifest.provenance, manifest.calibration
    yield Row("weights", origin.base_model, origin.base_commit, origin.base_sha256)
    if origin.adapter:
        yield Row("adapter", origin.adapter, None, origin.adapter_sha256)
    yield Row("tokenizer", TOKENIZER_FILE, None, manifest.files[TOKENIZER_FILE])
    run = {
        "recipe": origin.recipe,
        "data_sha256": origin.data_sha256,
        "data_revisions": origin.data_revisions,
        **origin.training,
    }
    yield from of_run(run)
    if known:
        name = f"{known.pairs} pairs" + (", held out by the training" if known.held_out else "")
        yield Row("calibration", name, None, known.pairs_sha256)
    yield Row("code", "TinyRM at export", origin.git_commit, None)


def of_run(run: Mapping[str, Any]) -> Iterator[Row]:
    """Yield what a run learnt from, and then what the runs learnt from that made its base or its parts."""
    base = run.get("recipe", {}).get("model") or run.get("recipe", {}).get("base")
    if isinstance(base, str):
        yield Row("trained from", base, run.get("base_commit"), run.get("base_sha256"))
    for path, digest in run.get("specialists_sha256", {}).items():
        yield Row("merged from", path, None, digest)
    revisions = run.get("data_revisions", {})
    for name, digest in run.get("data_sha256", {}).items():
        yield Row("data", name, revisions.get(name), digest)
    for path, digest in run.get("teachers", {}).items():
        yield Row("teacher", path, None, digest)
    for earlier in (run.get("base"), *run.get("specialists", {}).values()):
        if isinstance(earlier, Mapping):
            yield from of_run(earlier)
