"""Rows of a benchmark in its published schema."""

from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from tinyrm.errors import InvalidInput
from tinyrm.hub import load_table
from tinyrm.pairs import validate


class Row(BaseModel):
    """A row as published; columns that are not read are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


AnyRow = TypeVar("AnyRow", bound=Row)


def load_rows(source: str, split: str, kind: type[AnyRow], revision: str | None = None) -> list[AnyRow]:
    """Return the rows of one split; `source` and `revision` as of `tinyrm.hub.load_table`.

    Raises InvalidInput naming the row that does not fit.
    """
    try:
        table = load_table(source, split, revision=revision)
    except InvalidInput as error:
        raise InvalidInput(
            f"no split {split!r} of {source!r} could be read; name a hub id, a folder or a file: {error}"
        ) from error
    rows = [validate(kind, record, f"{source}, split {split}, row {number}") for number, record in enumerate(table)]
    if not rows:
        raise InvalidInput(f"{source}, split {split}, holds no rows")
    return rows
