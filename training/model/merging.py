"""Merge models of one shape in weight space. States are name -> tensor, in fp32; nothing is changed in place.

A difference ("task vector") is a specialist's state minus the base's. peft.utils.merge_utils is not used, because its
mathematics differ: it trims each tensor by itself, divides the elected values by their number instead of their weight,
and drops values by the global random state.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]


def mean(states: Sequence[State], coefficients: Sequence[float]) -> State:
    """Return the sum of c_i * state_i over the sum of c_i; with equal coefficients the uniform mean."""
    whole = sum(coefficients)
    return weighted_sum(states, [c / whole for c in coefficients])


def task_arithmetic(base: State, states: Sequence[State], coefficients: Sequence[float], scale: float = 1.0) -> State:
    """Return base + scale * sum of c_i * difference_i (arXiv 2212.04089, section 2)."""
    return add(base, weighted_sum(differences(base, states), coefficients), scale)


def ties(
    base: State, states: Sequence[State], coefficients: Sequence[float], *, density: float, scale: float = 1.0
) -> State:
    """Trim, elect a sign, average the values that have it (arXiv 2306.01708, algorithm 1).

    Coefficients weigh both the election and the average; equal ones are the paper's method, whose lambda is `scale`.
    """
    trimmed = [trim(difference, density) for difference in differences(base, states)]
    merged = {name: disjoint_mean([t[name] for t in trimmed], coefficients) for name in base}
    return add(base, merged, scale)


def dare(
    base: State,
    states: Sequence[State],
    coefficients: Sequence[float],
    *,
    density: float,
    seed: int,
    scale: float = 1.0,
) -> State:
    """Drop and rescale each difference, then add them as task arithmetic does (arXiv 2311.03099, section 3.2).

    density: share of the values that is kept, 1 - p in the paper.

    The same seed and order of specialists drop the same values.
    """
    thinned = [
        drop_and_rescale(difference, density, torch.Generator().manual_seed(seed + i))
        for i, difference in enumerate(differences(base, states))
    ]
    return add(base, weighted_sum(thinned, coefficients), scale)


def differences(base: State, states: Sequence[State]) -> list[State]:
    return [{name: state[name] - value for name, value in base.items()} for state in states]


def weighted_sum(states: Sequence[State], coefficients: Sequence[float]) -> State:
    pairs = list(zip(states, coefficients, strict=True))
    return {name: torch.stack([c * state[name] for state, c in pairs]).sum(dim=0) for name in states[0]}


def trim(difference: State, density: float) -> State:
    """Keep the share `density` of all values that is largest by magnitude, over all tensors together; zero the rest.

    Values equal to the smallest one that is kept stay too.
    """
    magnitudes = torch.cat([value.abs().flatten() for value in difference.values()])
    kept = max(1, round(density * magnitudes.numel()))
    smallest = magnitudes.kthvalue(magnitudes.numel() - kept + 1).values
    return {name: torch.where(value.abs() >= smallest, value, 0.0) for name, value in difference.items()}


def drop_and_rescale(difference: State, density: float, generator: torch.Generator) -> State:
    """Keep each value with probability `density`, as value / density, so that its expectation stays."""
    # By name: the dropped values must not depend on the order in which a file or a model lists them.
    keep = {name: torch.rand(difference[name].shape, generator=generator) < density for name in sorted(difference)}
    return {name: torch.where(keep[name], value / density, 0.0) for name, value in difference.items()}


def disjoint_mean(values: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """Return the weighted mean of the values with the elected sign; 0 if none has it or both signs weigh the same."""
    weights = torch.tensor(coefficients).view(-1, *[1] * values[0].ndim)
    stacked = torch.stack(list(values))
    elected = (weights * stacked).sum(dim=0).sign()
    agree = weights * ((stacked.sign() == elected) & (elected != 0))
    total = agree.sum(dim=0)
    return torch.where(total > 0, (agree * stacked).sum(dim=0) / total.where(total > 0, 1.0), 0.0)


def add(base: State, difference: State, scale: float) -> State:
    return {name: value + scale * difference[name] for name, value in base.items()}
