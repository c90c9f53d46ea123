"""What a figure should be, and whether it is."""

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Target:
    """value: None where there was nothing to measure, which meets no target."""

    what: str
    value: float | None
    limit: float
    sense: Literal["at least", "at most"]
    unit: str = ""

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.limit if self.sense == "at least" else self.value <= self.limit

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"met": self.met}
