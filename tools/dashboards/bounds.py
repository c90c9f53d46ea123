"""The objectives and bounds of alerts and panels, in one place: rules.yml and the dashboards are made from them.

The defaults suit the starter on two cores. `python -m tools.dashboards --latency-objective 0.2` makes files for others.
"""

from dataclasses import dataclass

from service.metrics import SECONDS

# Where docker-compose.yml's profile `docs` serves these pages. `--docs-url`, or the chart's docsUrl, replaces it.
DOCS_URL = "http://localhost:8080"


@dataclass(frozen=True)
class Bounds:
    """Objectives over 30 days, and the bounds of single alerts."""

    latency_objective: float = 1.0
    """Seconds within which an answered call of /v1/compare is good. A bound of the service's buckets."""
    latency_target: float = 0.99
    """Share of the answered calls of /v1/compare that are good."""
    availability_target: float = 0.999
    """Share of the requests that do not end with 500 or 503."""
    min_bad_requests: float = 10
    """Fewer bad requests than these, in the last hour or day, are no alert."""
    shed_share: float = 0.01
    """Share of the comparisons that are refused or miss their deadline."""
    loop_lag_s: float = 0.1
    """Delay of the event loop, in seconds."""
    memory_growth_bytes_per_hour: float = 100e6
    """Growth of an instance in each of two hours."""
    first_position: float = 2.0
    """Log-odds that the first position adds, at the median."""
    first_position_move: float = 0.25
    """How far that may move in a day."""
    truncated_share: float = 0.05
    """Share of the comparisons that are truncated."""
    disagreement_share: float = 0.3
    """Share of the comparisons whose orders disagree; a panel's only."""

    def __post_init__(self) -> None:
        """Raise ValueError if the latency objective cannot be counted, or a target leaves no budget."""
        if self.latency_objective not in SECONDS:
            known = ", ".join(f"{bound:g}" for bound in SECONDS)
            raise ValueError(
                f"latency_objective {self.latency_objective:g} is no bound of a bucket; these are: {known}"
            )
        for name in ("latency_target", "availability_target"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be between 0 and 1, such as 0.99; 1 would leave no error budget")

    @property
    def latency_bucket(self) -> str:
        """The objective as the label `le` has it."""
        return str(float(self.latency_objective))

    @property
    def budgets(self) -> dict[str, float]:
        """The share of bad requests that each objective allows, rounded to what a person would write."""
        targets = {"availability": self.availability_target, "latency": self.latency_target}
        return {slo: round(1 - target, 9) for slo, target in targets.items()}
