"""The stated cost against brute force, against torch's own counter on a real model, and against published numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerFast

from tinyrm.backbone import LabelLogits, geometry_of
from tinyrm.encoding import SpecialTokens
from tinyrm.flops import Geometry, exact_flops, paper_flops, window_pairs
from training.config import NewModel
from training.pretrain import initial_model

BASE = Geometry(
    layers=22,
    hidden=768,
    intermediate=1152,
    heads=12,
    window=128,
    global_layers=tuple(range(0, 22, 3)),
    vocab=50368,
)
LARGE = Geometry(
    layers=28,
    hidden=1024,
    intermediate=2624,
    heads=16,
    window=128,
    global_layers=tuple(range(0, 28, 3)),
    vocab=50368,
)


@given(st.integers(1, 150), st.integers(0, 160))
def test_window_pairs_are_those_one_would_count(tokens: int, half_window: int) -> None:
    counted = sum(abs(query - key) <= half_window for query in range(tokens) for key in range(tokens))
    assert window_pairs(tokens, half_window) == counted


@pytest.mark.parametrize("tokens", [129, 512, 8192])
def test_window_pairs_are_linear_beyond_the_window(tokens: int) -> None:
    assert window_pairs(tokens, 64) == 129 * tokens - 4160


@pytest.fixture(scope="module")
def small_model(tokenizer: PreTrainedTokenizerFast, special: SpecialTokens) -> LabelLogits:
    sizes = NewModel(num_hidden_layers=4, hidden_size=32, intermediate_size=48, num_attention_heads=2)
    masked_lm = initial_model(sizes, tokenizer)
    # Torch counts products it can see; the fused kernel of the CPU is not among them.
    masked_lm.set_attn_implementation("eager")
    return LabelLogits(masked_lm, special.mask, (7, 8)).eval()


@pytest.mark.parametrize("tokens", [1, 2, 65, 300])
def test_exact_count_is_what_torch_counts(small_model: LabelLogits, special: SpecialTokens, tokens: int) -> None:
    ids = torch.full((1, tokens), special.mask)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        small_model(ids, torch.ones_like(ids))
    geometry = geometry_of(small_model.masked_lm.config)
    # Eager attention computes every pair and masks the distant ones away: a window that none is outside of.
    widened = geometry.model_copy(update={"window": max(geometry.window, 2 * tokens)})
    assert exact_flops(widened, tokens) == counter.get_total_flops()


def test_a_local_layer_costs_its_window_only() -> None:
    all_global = BASE.model_copy(update={"global_layers": tuple(range(22))})
    saved = exact_flops(all_global, 1024) - exact_flops(BASE, 1024)
    assert saved == 14 * 4 * 768 * (1024 * 1024 - window_pairs(1024, 64))


@pytest.mark.parametrize(
    ("geometry", "tokens", "gflop"),
    [(BASE, 256, 59.3), (BASE, 512, 122.0), (BASE, 4096, 1338), (LARGE, 512, 366.7), (LARGE, 1024, 755.1)],
)
def test_exact_count_of_the_published_sizes(geometry: Geometry, tokens: int, gflop: float) -> None:
    assert exact_flops(geometry, tokens) / 1e9 == pytest.approx(gflop, rel=5e-4)


def test_the_terms_of_the_base_model_at_512_tokens() -> None:
    linear = 2 * 512 * 22 * (4 * 768**2 + 3 * 768 * 1152)
    attention = 8 * 4 * 768 * 512**2 + 14 * 4 * 768 * (129 * 512 - 4160)
    head_at_the_mask = 2 * (768**2 + 2 * 768)
    assert exact_flops(BASE, 512) == linear + attention + head_at_the_mask


@pytest.mark.parametrize(("geometry", "parameters", "gflop"), [(BASE, 149_655_232, 0.325), (LARGE, 395_881_664, 0.857)])
def test_papers_formula_gives_the_papers_numbers(geometry: Geometry, parameters: int, gflop: float) -> None:
    assert paper_flops(parameters, geometry, tokens=1) / 1e9 == pytest.approx(gflop, abs=5e-4)
    assert paper_flops(parameters, geometry, tokens=300) == pytest.approx(300 * paper_flops(parameters, geometry, 1))


@pytest.mark.parametrize("size", ["layers", "hidden", "intermediate", "heads", "window", "vocab"])
def test_a_size_of_zero_is_refused(size: str) -> None:
    with pytest.raises(ValidationError, match=size):
        Geometry.model_validate(BASE.model_dump() | {size: 0})
