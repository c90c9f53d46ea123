"""Test what the command chooses by the pairs, the base and the machine, and that the file of its ground agrees."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from tinyrm.manifest import SetReading
from training.finetune.defaults import (
    CPU_BASE,
    GPU_BASE,
    Base,
    Machine,
    as_values,
    choose,
    default_base,
    max_micro_batch,
)
from training.finetune.prepare import GROUND
from training.loading import merge, read_recipe, to_recipe

MINILM = Base(CPU_BASE, "bert", layers=6, parameters=22_713_216, positions=512, has_masked_lm=False)
MODERNBERT = Base(GPU_BASE, "modernbert", layers=22, parameters=149_014_272, positions=8192, has_masked_lm=True)
LARGE = replace(MODERNBERT, model="answerdotai/ModernBERT-large", layers=28, parameters=395_000_000)
CPU = Machine("cpu")
H100 = Machine("cuda", memory=80 * 2**30, has_bf16=True)
SMALL_GPU = Machine("cuda", memory=8 * 2**30, has_bf16=False)


def values(base: Base, machine: Machine, pairs: int, **options: Any) -> dict[str, Any]:
    return as_values(choose(base, machine, pairs, **options))


@pytest.mark.parametrize("reads", [None, "pair", "response", "set"])
@pytest.mark.parametrize(
    "machine", [CPU, H100, SMALL_GPU, replace(H100, processes=8), replace(CPU, processes=3)], ids=str
)
def test_what_is_chosen_is_a_valid_recipe_on_the_ground(machine: Machine, reads: Any) -> None:
    ground = read_recipe(GROUND)
    for base, pairs in product((MINILM, MODERNBERT, LARGE), (20, 1_000, 9_999, 200_000)):
        chosen = choose(base, machine, pairs, reads)
        recipe = to_recipe(merge(merge(ground, as_values(chosen)), {"model": base.model}), f"{base}, {pairs}")
        assert recipe.optimization.batch_size % (recipe.optimization.micro_batch_size * machine.processes) == 0
        assert all(choice.why for choice in chosen)
        assert len({choice.key for choice in chosen}) == len(chosen)


def test_the_base_suits_the_machine() -> None:
    assert default_base(CPU).value == CPU_BASE
    assert default_base(H100).value == GPU_BASE


def test_a_body_is_read_as_a_set_and_a_masked_lm_at_its_mask() -> None:
    small, large = values(MINILM, CPU, 200), values(MODERNBERT, H100, 200)
    assert (small["head"], small["sets"]["others"], small["sets"]["read_at"], small["new_head"]) == (
        "set",
        "none",
        "mean",
        True,
    )
    assert (large["head"], large["sets"], large["new_head"]) == ("cloze", None, False)
    assert values(MINILM, CPU, 200, reads="pair")["head"] == "pair-cls"
    assert values(MODERNBERT, H100, 200, reads="set")["sets"]["read_at"] == "mask"
    assert values(MODERNBERT, H100, 200, reads="response")["head"] == "pointwise"


def test_a_run_goes_on_as_it_was_trained() -> None:
    trained = replace(MINILM, head="set", sets=SetReading(others="tokens", layers=1, read_at="mean"))
    again = values(trained, CPU, 200)
    assert (again["head"], again["sets"]["others"], again["new_head"]) == ("set", "tokens", False)


def test_the_machine_decides_precision_lengths_and_which_weights_learn() -> None:
    assert values(MINILM, CPU, 200)["optimization"]["precision"] == "fp32"
    assert values(MODERNBERT, H100, 200)["optimization"]["precision"] == "bf16"
    assert values(MODERNBERT, SMALL_GPU, 200)["optimization"]["precision"] == "fp32"
    assert values(MODERNBERT, H100, 200)["dora"] is None
    assert values(LARGE, SMALL_GPU, 200)["dora"]["rank"] == 64
    assert (values(MINILM, CPU, 200)["frozen_layers"], values(MODERNBERT, H100, 200)["frozen_layers"]) == (2, 0)
    assert (values(MINILM, CPU, 200)["spec"]["max_tokens"], values(MINILM, CPU, 200)["train_max_tokens"]) == (512, 256)
    assert (values(MODERNBERT, H100, 200)["spec"]["max_tokens"], values(MODERNBERT, H100, 200)["train_max_tokens"]) == (
        2048,
        None,
    )


def test_few_pairs_get_many_passes_in_small_steps_and_many_pairs_one() -> None:
    few, many = values(MINILM, CPU, 200), values(MINILM, CPU, 200_000)
    assert few["optimization"]["epochs"] > 4
    assert many["optimization"]["epochs"] == 1
    assert few["optimization"]["batch_size"] < many["optimization"]["batch_size"]
    assert few["optimization"]["peak_lr"] < many["optimization"]["peak_lr"]
    # Enough to determine a temperature (50 pairs), and no more than is needed of many.
    assert 200 * few["held_out_fraction"] >= 50
    assert many["held_out_fraction"] < few["held_out_fraction"]


def test_intervals_follow_the_epochs_that_the_user_wants() -> None:
    usual, wanted = (
        next(c for c in choose(MINILM, CPU, 400, epochs=epochs) if c.key == "optimization.save_steps")
        for epochs in (None, 1)
    )
    assert (usual.value, usual.why) == (28, "about 112 steps in all: an interruption loses 28 at most")
    assert (wanted.value, wanted.why) == (10, "about 18 steps in all: an interruption loses 10 at most")


def test_an_adapter_learns_faster_than_all_weights() -> None:
    adapted, whole = values(LARGE, SMALL_GPU, 200), values(LARGE, H100, 200)
    assert adapted["optimization"]["peak_lr"] > whole["optimization"]["peak_lr"]


@pytest.mark.parametrize(("per_process", "limit", "expected"), [(32, 64, 32), (32, 16, 16), (24, 16, 12), (2, 1, 2)])
def test_a_pass_divides_the_batch_and_is_even(per_process: int, limit: int, expected: int) -> None:
    assert max_micro_batch(per_process, limit) == expected
