"""How much of each part is measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loadtests.bench.harness import Limits

# Receives what a part has measured so far, so that an interrupted run keeps it.
Save = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """What the parts measure, and how long.

    geometries, contenders: of the part `engines`.
    models: of the part `cross-encoders`.
    tokens: lengths; empty for those of each geometry and model.
    responses: sizes of a group in the part `ranking`.
    mixed: whether a batch of mixed lengths is measured, too.
    """

    name: str
    threads: int
    geometries: tuple[str, ...]
    models: tuple[str, ...]
    limits: Limits
    tokens: tuple[int, ...] = ()
    contenders: tuple[str, ...] = ()
    responses: tuple[int, ...] = (2, 4, 8, 16, 32)
    mixed: bool = True

    @property
    def quick(self) -> bool:
        return self.name == "quick"
