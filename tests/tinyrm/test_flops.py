"""Compare the stated cost with brute force, with torch's own counter on a real model, and with published numbers."""

import copy
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ModernBertForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

from tests.parity.test_classifiers import make
from tests.parity.test_other_heads import HEADS, classifier
from tinyrm.encoding import SpecialTokens
from tinyrm.families.bert import PaddedAttention
from tinyrm.families.graphs import graph_module
from tinyrm.families.plain import ClassifierLogits, plain_module
from tinyrm.flops import (
    Geometry,
    Others,
    block_pairs,
    exact_flops,
    executed_flops,
    full_head_flops,
    matrix_weights,
    paper_flops,
    set_flops,
    unpruned_flops,
    window_pairs,
)
from tinyrm.modernbert.blocked import BlockedAttention, BlockedModel
from tinyrm.modernbert.checkpoint import LabelLogits, read_geometry
from tinyrm.modernbert.model import PreferenceModel
from training.recipe import NewModel
from training.stages.pretrain import initial_model

PAIR_MEAN = HEADS["pair-mean"]
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


PARTS = st.lists(st.integers(1, 90), min_size=1, max_size=6)
SMALL = BASE.model_copy(update={"layers": 4, "hidden": 8, "intermediate": 12, "window": 20, "global_layers": (0, 2, 3)})


@given(prompt=st.integers(1, 90), responses=PARTS, others=st.sampled_from(["none", "masks", "tokens"]))
def test_the_pairs_of_a_set_are_those_one_would_count(prompt: int, responses: list[int], others: Others) -> None:
    """Count query by query in a model without matrix products, so that attention and rows are what is left."""
    places = [(0, position) for position in range(prompt)]
    places += [(part, prompt + i) for part, length in enumerate(responses, start=1) for i in range(length)]
    masks = {(part, prompt + length - 1) for part, length in enumerate(responses, start=1)}

    def seen(queries: Iterable[tuple[int, int]], *, window: int, crossing: bool) -> int:
        return sum(
            (key[0] in (0, query[0]) and abs(query[1] - key[1]) <= window)
            or (crossing and 0 not in (query[0], key[0]) and (others == "tokens" or {query, key} <= masks))
            for query in queries
            for key in places
        )

    crossing = 0 if others == "none" else 2
    local = seen(places, window=SMALL.window // 2, crossing=False)
    whole, crossed = (seen(places, window=1000, crossing=is_crossing) for is_crossing in (False, crossing > 0))
    last = seen(masks, window=1000, crossing=crossing > 0)
    h, mlp = SMALL.hidden, 3 * SMALL.hidden * SMALL.intermediate
    # Layer 0 is global, 1 local, 2 global and crossing, 3 the same for the masks only.
    pairs = whole + local + crossed + last
    linear = 3 * len(places) * (4 * h * h + mlp) + len(places) * 2 * h * h + len(responses) * (2 * h * h + mlp)
    head = len(responses) * (h * h + 2 * h)
    counted = set_flops(SMALL, prompt, responses, others=others, crossing_layers=crossing)
    assert counted == 2 * (linear + 2 * h * pairs + head)


@given(prompt=st.integers(1, 400), responses=PARTS)
def test_a_shared_prompt_costs_once_what_it_costs_each_response_alone(prompt: int, responses: list[int]) -> None:
    alone = [set_flops(BASE, prompt, [length]) for length in responses]
    (twice,) = {set_flops(BASE, prompt, [n, n]) - 2 * set_flops(BASE, prompt, [n]) for n in responses[:1]}
    assert set_flops(BASE, prompt, responses) == sum(alone) + (len(responses) - 1) * twice
    assert set_flops(BASE, 0, responses[:1]) == exact_flops(BASE, responses[0])


@pytest.mark.parametrize("tokens", [129, 512, 8192])
def test_window_pairs_are_linear_beyond_the_window(tokens: int) -> None:
    assert window_pairs(tokens, 64) == 129 * tokens - 4160


@pytest.fixture(scope="module")
def small_model(tokenizer: PreTrainedTokenizerFast) -> ModernBertForMaskedLM:
    sizes = NewModel(num_hidden_layers=4, hidden_size=32, intermediate_size=48, num_attention_heads=2)
    masked_lm = initial_model(sizes, tokenizer)
    # Torch counts products it can see; the fused kernel of the CPU is not among them.
    masked_lm.set_attn_implementation("eager")
    return masked_lm.eval()


@pytest.fixture
def visible_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the graph's attention operator by its matrix products, which the counter can count."""

    def attention(self: BlockedAttention, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        weights = torch.softmax(q @ k.transpose(2, 3) + bias, dim=-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    monkeypatch.setattr(BlockedAttention, "_attention", attention)


def counted(model: nn.Module, tokens: int, mask_id: int) -> int:
    """Return the operations of one sequence with its mask at the end, by torch's own counter."""
    ids = torch.full((1, tokens), 9)
    ids[0, -1] = mask_id
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids, torch.ones_like(ids))
    total: int = counter.get_total_flops()
    if isinstance(model, BlockedModel):
        # The label logits are sums in fp32 and not a product of matrices, so torch does not count them.
        total += 2 * model.model.label_weight.numel()
    return total


@pytest.mark.parametrize("tokens", [1, 2, 64, 65, 128, 129, 191, 192, 193, 300])
@pytest.mark.usefixtures("visible_attention")
def test_each_graph_runs_what_torch_counts(
    small_model: ModernBertForMaskedLM, special: SpecialTokens, tokens: int
) -> None:
    geometry = read_geometry(small_model.config)
    plain = LabelLogits(small_model, special.mask, (7, 8)).eval()
    optimised = BlockedModel(PreferenceModel(copy.deepcopy(small_model), (7, 8)), special.mask).eval()
    assert executed_flops(geometry, tokens, "plain") == counted(plain, tokens, special.mask)
    assert executed_flops(geometry, tokens, "optimised") == counted(optimised, tokens, special.mask)


@pytest.mark.usefixtures("visible_attention")
def test_a_mean_of_all_rows_needs_the_whole_last_layer(special: SpecialTokens) -> None:
    case = classifier(PAIR_MEAN)
    geometry = read_geometry(case.config, PAIR_MEAN.read_at)
    assert executed_flops(geometry, 200, "plain") == counted(ClassifierLogits(eager(case), None), 200, special.mask)
    read = graph_module(case, PAIR_MEAN, special, None, max_tokens=200)
    assert executed_flops(geometry, 200, "optimised") == counted(read, 200, special.mask)


@pytest.mark.parametrize("tokens", [8, 33, 200])
@pytest.mark.parametrize("name", ["bert pair", "bert", "roberta", "electra", "deberta"])
def test_other_families_run_what_torch_counts(
    name: str, tokens: int, monkeypatch: pytest.MonkeyPatch, special: SpecialTokens
) -> None:
    """Leave out at most 1 %: one output is counted like two."""

    def visible(self: PaddedAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return (torch.softmax(q @ k.transpose(2, 3) + self.bias, dim=-1) @ v).transpose(1, 2).flatten(2)

    monkeypatch.setattr(PaddedAttention, "attend", visible)
    monkeypatch.setattr(PaddedAttention, "attend_from_read", visible)
    case = make(name)
    geometry = read_geometry(case.model.config, case.head.read_at)
    plain = plain_module(eager(copy.deepcopy(case.model)), case.head, special, None)
    stated = executed_flops(geometry, tokens, "plain")
    assert stated == pytest.approx(counted(plain, tokens, special.mask), rel=0.01)
    assert exact_flops(geometry, tokens) < stated
    if name != "deberta":
        optimised = counted(case.optimised(), tokens, special.mask)
        assert executed_flops(geometry, tokens, "optimised") == pytest.approx(optimised, rel=0.01)
        assert exact_flops(geometry, tokens) == executed_flops(geometry, tokens, "optimised")


def eager(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with attention in products that the counter sees."""
    model.set_attn_implementation("eager")
    return model


@pytest.mark.usefixtures("visible_attention")
def test_a_local_last_layer_is_computed_completely(tokenizer: PreTrainedTokenizerFast, special: SpecialTokens) -> None:
    sizes = NewModel(num_hidden_layers=3, hidden_size=32, intermediate_size=48, num_attention_heads=2)
    masked_lm = initial_model(sizes, tokenizer).eval()
    geometry = read_geometry(masked_lm.config)
    optimised = BlockedModel(PreferenceModel(masked_lm, (7, 8)), special.mask).eval()
    assert not geometry.last_is_global
    assert executed_flops(geometry, 200, "optimised") == counted(optimised, 200, special.mask)


@given(st.integers(1, 700), st.integers(1, 80))
def test_exact_flops_never_exceed_executed_flops(tokens: int, half_window: int) -> None:
    assert window_pairs(tokens, half_window) <= block_pairs(tokens, half_window)
    for geometry in (BASE, BASE.model_copy(update={"layers": 21, "global_layers": tuple(range(0, 21, 3))})):
        assert exact_flops(geometry, tokens) <= executed_flops(geometry, tokens, "optimised")


def test_a_local_layer_costs_its_window_only() -> None:
    all_global = BASE.model_copy(update={"global_layers": tuple(range(22))})
    saved = exact_flops(all_global, 1024) - exact_flops(BASE, 1024)
    assert saved == 14 * 4 * 768 * (1024 * 1024 - window_pairs(1024, 64))


@pytest.mark.parametrize(
    ("geometry", "tokens", "unpruned", "full_head", "pruned"),
    [
        (BASE, 256, 59.3, 79.4, 56.3),
        (BASE, 512, 122.0, 162.3, 115.5),
        (BASE, 1024, 257.2, 337.6, 242.5),
        (BASE, 4096, 1338, 1660, 1241),
        (LARGE, 256, 180.5, 207.4, 173.4),
        (LARGE, 512, 366.7, 420.6, 352.0),
        (LARGE, 1024, 755.1, 862.9, 723.6),
        (LARGE, 4096, 3537, 3968, 3359),
    ],
)
def test_the_physical_limits_of_the_published_sizes(
    geometry: Geometry, tokens: int, unpruned: float, full_head: float, pruned: float
) -> None:
    """The numbers were computed apart from this code, from the formulas alone."""
    assert unpruned_flops(geometry, tokens) / 1e9 == pytest.approx(unpruned, rel=1e-3)
    assert full_head_flops(geometry, tokens) / 1e9 == pytest.approx(full_head, rel=1e-3)
    # They take q, k and v of the first layer from a table for each id, which no engine of ours does.
    first_layer = 6 * tokens * geometry.hidden**2
    assert (exact_flops(geometry, tokens) - first_layer) / 1e9 == pytest.approx(pruned, rel=1e-3)


@pytest.mark.parametrize(("geometry", "millions"), [(BASE, 110.3), (LARGE, 343.1)])
def test_the_weights_that_a_pass_reads(geometry: Geometry, millions: float) -> None:
    assert matrix_weights(geometry) / 1e6 == pytest.approx(millions, rel=1e-3)


@pytest.mark.parametrize(
    ("geometry", "tokens", "gflop"),
    [(BASE, 256, 57.2), (BASE, 512, 117.3), (BASE, 4096, 1255), (LARGE, 512, 355.2), (LARGE, 1024, 730.0)],
)
def test_exact_count_of_the_published_sizes(geometry: Geometry, tokens: int, gflop: float) -> None:
    assert exact_flops(geometry, tokens) / 1e9 == pytest.approx(gflop, rel=1e-3)


def test_the_terms_of_the_base_model_at_512_tokens() -> None:
    linear = 2 * 512 * 21 * (4 * 768**2 + 3 * 768 * 1152)
    attention = 7 * 4 * 768 * 512**2 + 14 * 4 * 768 * (129 * 512 - 4160)
    last_layer = 2 * 512 * 2 * 768**2 + 2 * (2 * 768**2 + 3 * 768 * 1152) + 4 * 768 * 512
    head_at_the_mask = 2 * (768**2 + 2 * 768)
    assert exact_flops(BASE, 512) == linear + attention + last_layer + head_at_the_mask


@pytest.mark.parametrize(("geometry", "parameters", "gflop"), [(BASE, 149_655_232, 0.325), (LARGE, 395_881_664, 0.857)])
def test_papers_formula_gives_the_papers_numbers(geometry: Geometry, parameters: int, gflop: float) -> None:
    assert paper_flops(parameters, geometry, tokens=1) / 1e9 == pytest.approx(gflop, abs=5e-4)
    assert paper_flops(parameters, geometry, tokens=300) == pytest.approx(300 * paper_flops(parameters, geometry, 1))


@pytest.mark.parametrize("size", ["layers", "hidden", "intermediate", "heads", "window", "vocab"])
def test_a_size_of_zero_is_refused(size: str) -> None:
    with pytest.raises(ValidationError, match=size):
        Geometry.model_validate(BASE.model_dump() | {size: 0})
