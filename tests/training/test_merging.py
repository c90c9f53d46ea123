"""Test weight-space merging against numbers by hand, and against the same formulas in numpy."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.model import merging
from training.model.merging import State

Arrays = dict[str, NDArray[np.float64]]


def state(**values: list[float]) -> State:
    return {name: torch.tensor(value) for name, value in values.items()}


def random_states(count: int) -> list[State]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"matrix": (7, 5), "vector": (11,)}
    return [{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(count)]


def assert_equal(merged: State, expected: State | Arrays) -> None:
    assert merged.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(merged[name].double(), torch.as_tensor(value).double(), atol=1e-6, rtol=1e-6)


def numpy_ties(base: State, states: list[State], coefficients: list[float], density: float, scale: float) -> Arrays:
    """Apply the paper's algorithm value by value."""
    names = list(base)
    start = np.concatenate([base[name].double().numpy().ravel() for name in names])
    vectors = []
    for each in states:
        vector = np.concatenate([each[name].double().numpy().ravel() for name in names]) - start
        largest = np.argsort(-np.abs(vector))[: round(density * len(vector))]
        vectors.append(np.where(np.isin(np.arange(len(vector)), largest), vector, 0))
    merged = start.copy()
    for p in range(len(start)):
        sign = np.sign(sum(c * v[p] for c, v in zip(coefficients, vectors, strict=True)))
        chosen = [(c, v[p]) for c, v in zip(coefficients, vectors, strict=True) if v[p] * sign > 0]
        if chosen:
            merged[p] += scale * sum(c * v for c, v in chosen) / sum(c for c, _ in chosen)
    sizes = np.cumsum([base[name].numel() for name in names])[:-1]
    parts = np.split(merged, sizes)
    return {name: part.reshape(base[name].shape) for name, part in zip(names, parts, strict=True)}


def test_mean_of_two_is_half_way_and_weights_are_taken_as_shares() -> None:
    one, other = state(w=[0.0, 2.0]), state(w=[4.0, 2.0])
    assert_equal(merging.mean([one, other], [1.0, 1.0]), state(w=[2.0, 2.0]))
    assert_equal(merging.mean([one, other], [1.0, 3.0]), state(w=[3.0, 2.0]))


def test_task_arithmetic_adds_scaled_differences() -> None:
    base, one, other = state(w=[1.0, 1.0, 1.0]), state(w=[2.0, 1.0, 0.0]), state(w=[1.0, 5.0, 0.0])
    merged = merging.task_arithmetic(base, [one, other], [0.5, 0.25], scale=2.0)
    assert_equal(merged, state(w=[1 + 2 * 0.5, 1 + 2 * 0.25 * 4, 1 - 2 * (0.5 + 0.25)]))


def test_one_specialist_whole_is_that_specialist() -> None:
    base, one = random_states(2)
    for merged in (
        merging.mean([one], [0.3]),
        merging.task_arithmetic(base, [one], [1.0]),
        merging.ties(base, [one], [0.3], density=1.0),
        merging.dare(base, [one], [1.0], density=1.0, seed=0),
    ):
        assert_equal(merged, one)


def test_ties_by_hand() -> None:
    base = state(w=[0.0, 0.0, 0.0, 0.0])
    one = state(w=[4.0, -3.0, 2.0, 0.1])
    other = state(w=[2.0, 5.0, -2.0, 0.1])
    # Trimmed to three of four values: 0.1 goes. Signs: +, + (5 outweighs 3), none (2 and -2), none (all trimmed).
    assert_equal(merging.ties(base, [one, other], [1.0, 1.0], density=0.75), state(w=[3.0, 5.0, 0.0, 0.0]))
    # A coefficient changes the election and the average: -9 against 5; (3 * 4 + 2) / 4; 6 against -2.
    assert_equal(merging.ties(base, [one, other], [3.0, 1.0], density=0.75), state(w=[3.5, -3.0, 2.0, 0.0]))


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("coefficients", [[1.0, 1.0, 1.0], [0.2, 0.5, 0.9]])
def test_ties_equals_the_algorithm_written_value_by_value(density: float, coefficients: list[float]) -> None:
    base, *states = random_states(4)
    merged = merging.ties(base, states, coefficients, density=density, scale=0.7)
    assert_equal(merged, numpy_ties(base, states, coefficients, density, 0.7))


def test_trim_goes_by_all_tensors_together_and_keeps_equals() -> None:
    difference = state(large=[5.0, -6.0], small=[1.0, 0.5])
    assert_equal(merging.trim(difference, 0.5), state(large=[5.0, -6.0], small=[0.0, 0.0]))
    assert_equal(merging.trim(state(w=[2.0, -2.0, 1.0, 0.0]), 0.25), state(w=[2.0, -2.0, 0.0, 0.0]))
    assert_equal(merging.trim(state(w=[3.0, 1.0, 1.0]), 1e-9), state(w=[3.0, 0.0, 0.0]))


def test_ties_of_specialists_that_never_moved_is_the_base() -> None:
    base = random_states(1)[0]
    assert_equal(merging.ties(base, [base, base], [1.0, 1.0], density=0.2), base)


def test_dare_keeps_a_share_rescaled_and_the_same_one_for_a_seed() -> None:
    base = {"w": torch.zeros(40_000)}
    ones = {"w": torch.ones(40_000)}
    merged = merging.dare(base, [ones], [1.0], density=0.1, seed=5)
    assert set(merged["w"].unique().tolist()) == {0.0, 10.0}
    assert merged["w"].mean().item() == pytest.approx(1.0, abs=0.06), "the expectation stays"
    assert merging.dare(base, [ones], [1.0], density=0.1, seed=5)["w"].equal(merged["w"])
    assert not merging.dare(base, [ones], [1.0], density=0.1, seed=6)["w"].equal(merged["w"])


def test_dare_drops_other_values_of_each_specialist_in_any_order_of_tensors() -> None:
    base, one = random_states(2)
    same = merging.dare(base, [one, one], [0.5, 0.5], density=0.5, seed=1)
    alone = merging.dare(base, [one], [1.0], density=0.5, seed=1)
    assert not same["matrix"].equal(alone["matrix"])
    backwards = [dict(reversed(s.items())) for s in (base, one)]
    assert_equal(merging.dare(backwards[0], backwards[1:], [1.0], density=0.5, seed=1), alone)


def test_dare_equals_task_arithmetic_on_what_it_left() -> None:
    base, one, other = random_states(3)
    thinned = [
        merging.drop_and_rescale(d, 0.4, torch.Generator().manual_seed(9 + i))
        for i, d in enumerate(merging.differences(base, [one, other]))
    ]
    expected = {
        name: base[name].double().numpy()
        + 1.5 * (0.3 * thinned[0][name].double().numpy() + 0.6 * thinned[1][name].double().numpy())
        for name in base
    }
    assert_equal(merging.dare(base, [one, other], [0.3, 0.6], density=0.4, seed=9, scale=1.5), expected)


def test_inputs_stay_as_they_were() -> None:
    base, *states = random_states(3)
    before = [{name: value.clone() for name, value in s.items()} for s in (base, *states)]
    merging.mean(states, [1.0, 1.0])
    merging.ties(base, states, [1.0, 1.0], density=0.5)
    merging.dare(base, states, [1.0, 1.0], density=0.5, seed=0)
    for now, then in zip((base, *states), before, strict=True):
        assert all(value.equal(then[name]) for name, value in now.items())
