"""Test the update rule and the schedule against their definitions."""

import pytest
import torch
from torch import Tensor, nn

from training.recipe import Optimization
from training.trainer import decoupled_adamw, warmup_then_linear

STEPS = 50
# A decay a thousand times the usual one: a rule that scales it wrongly is far off after fifty steps.
OPTIMIZATION = Optimization(peak_lr=3e-3, weight_decay=0.01, warmup_ratio=0.1, floor_ratio=0.02)


def learning_rate(step: int) -> float:
    """Return the rate at a step: five steps up from a fiftieth of the peak, forty-five down to it."""
    share = step / 5 if step < 5 else 1 - (step - 5) / 45
    floor = OPTIMIZATION.floor_ratio
    return OPTIMIZATION.peak_lr * (floor + (1 - floor) * share)


def composer_rule(p: Tensor, gradients: list[Tensor], weight_decay: float) -> Tensor:
    """Apply Composer's DecoupledAdamW: decay by the share of the peak rate, then Adam with bias correction."""
    (b1, b2), m, v = OPTIMIZATION.betas, torch.zeros_like(p), torch.zeros_like(p)
    for step, gradient in enumerate(gradients):
        lr = learning_rate(step)
        p = p * (1 - weight_decay * lr / OPTIMIZATION.peak_lr)
        m = b1 * m + (1 - b1) * gradient
        v = b2 * v + (1 - b2) * gradient**2
        m_hat, v_hat = m / (1 - b1 ** (step + 1)), v / (1 - b2 ** (step + 1))
        p = p - lr * m_hat / (v_hat.sqrt() + OPTIMIZATION.eps)
    return p


def optimize(layer: nn.Module, gradients: list[list[Tensor]], optimization: Optimization = OPTIMIZATION) -> list[float]:
    """Apply the gradients, one list per step, through our optimizer and schedule; return the rates."""
    optimizer = decoupled_adamw(layer, optimization)
    scheduler = warmup_then_linear(optimizer, optimization, len(gradients))
    rates = []
    for step in gradients:
        for parameter, gradient in zip(layer.parameters(), step, strict=True):
            parameter.grad = gradient.clone()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_fifty_steps_follow_composers_rule_and_spare_vectors_from_decay() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).double()
    gradients = [[torch.randn_like(p) for p in layer.parameters()] for _ in range(STEPS)]
    weight, bias = (p.detach().clone() for p in layer.parameters())
    optimize(layer, gradients)
    of_weight, of_bias = zip(*gradients, strict=True)
    torch.testing.assert_close(layer.weight, composer_rule(weight, list(of_weight), 0.01), atol=1e-6, rtol=0)
    torch.testing.assert_close(layer.bias, composer_rule(bias, list(of_bias), 0.0), atol=1e-6, rtol=0)


def test_norm_weights_and_biases_stay_when_only_decay_acts() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    before = [p.detach().clone() for p in model.parameters()]
    optimize(model, [[torch.zeros_like(p) for p in model.parameters()]] * 10)
    moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert moved == [True, False, False, False]


def test_frozen_parameters_are_not_given_to_the_optimizer() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    given = [p for group in decoupled_adamw(model, OPTIMIZATION).param_groups for p in group["params"]]
    assert {id(p) for p in given} == {id(p) for p in model[1].parameters()}


def test_rate_rises_from_the_floor_to_the_peak_and_falls_back() -> None:
    layer = nn.Linear(1, 1)
    rates = optimize(layer, [[torch.zeros_like(p) for p in layer.parameters()]] * STEPS)
    assert rates == pytest.approx([learning_rate(step) for step in range(STEPS)])
    assert rates[0] == pytest.approx(6e-5)
    assert max(rates) == rates[5] == OPTIMIZATION.peak_lr


def test_rate_after_the_last_step_is_the_floors_share_of_the_peak() -> None:
    optimizer = decoupled_adamw(nn.Linear(1, 1), OPTIMIZATION)
    schedule = warmup_then_linear(optimizer, OPTIMIZATION, STEPS)
    for _ in range(STEPS):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.02 * 3e-3] * 2)


def test_no_warm_up_starts_at_the_peak() -> None:
    layer = nn.Linear(1, 1)
    still = [[torch.zeros_like(p) for p in layer.parameters()]] * 4
    assert optimize(layer, still, Optimization(peak_lr=1.0, warmup_ratio=0))[0] == 1.0
