"""Test products in 8 bits: exact integers, no batch-mates, and the search for those that stay in fp32."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from export.graph import weights_of
from export.int8_graph import write_int8
from export.parity import torch_run
from export.precision import by_harm, keep_fewest, measure_harms, search_int8
from export.products import (
    MAX_NEIGHBOURS,
    Product,
    Rounded,
    find_products,
    limit_neighbours,
    round_columns,
    round_weights,
    rounded,
)
from tinyrm.encoding import Encoding, Truncation
from tinyrm.engines.onnx_runtime import onnxruntime
from tinyrm.errors import PrecisionRefused
from tinyrm.manifest import Gate
from tinyrm.modernbert.model import Projection

WIDTH = 32
NAMES = ("one", "outlier", "three", "four")


def neighbours(integers: NDArray[np.int8]) -> int:
    """Return the largest sum of two neighbouring inputs' integers of one sign."""
    twos = integers.astype(np.int64).reshape(-1, 2, integers.shape[1])
    return int(max(twos.clip(min=0).sum(axis=1).max(), (-twos).clip(min=0).sum(axis=1).max()))


@pytest.mark.parametrize("inputs", [32, 33])
def test_weights_are_close_in_integers_whose_neighbours_do_not_saturate(inputs: int) -> None:
    weight = np.random.default_rng(0).normal(size=(inputs, 40)).astype(np.float32)
    weight[:, 3] = 0
    integers, scales = round_columns(weight)
    assert neighbours(np.pad(integers, ((0, inputs % 2), (0, 0)))) <= MAX_NEIGHBOURS
    error = np.linalg.norm(integers * scales - weight) / np.linalg.norm(weight)
    coarse = np.abs(weight).max(axis=0) / 64
    coarse[3] = 1
    assert error < np.linalg.norm(np.rint(weight / coarse) * coarse - weight) / np.linalg.norm(weight)
    assert not integers[:, 3].any()


def test_neighbours_of_one_sign_share_the_limit_and_others_keep_their_digits() -> None:
    columns = np.array([[127, 127, 100, -127], [127, -127, 27, -1], [5, 5, 5, 5], [-5, 0, 127, 127]], dtype=np.float32)
    limited = limit_neighbours(columns)
    assert limited.tolist() == [[64, 127, 100, -127], [64, -127, 27, -1], [5, 5, 4, 4], [-5, 0, 123, 123]]


def graph_of(weight: NDArray[np.float32], path: Path) -> nn.Module:
    """Write one product to `path`. Return the module."""
    linear = nn.Linear(*weight.shape, bias=False)
    linear.weight.data = torch.from_numpy(weight.T.copy())
    module = nn.ModuleDict({"product": Projection(linear)})
    shapes = [[None, None, columns] for columns in weight.shape]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in zip("xy", shapes, strict=True)
    ]
    name = "product.weights.0"
    tensors = [numpy_helper.from_array(weight, name)]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", name], ["y"])], "product", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location=weights_of(path).name)
    return module


def run_int8(
    weight: NDArray[np.float32], x: NDArray[np.float32], low: float, folder: Path
) -> tuple[NDArray[np.float32], NDArray[np.float32], onnxruntime.InferenceSession]:
    """Return the product of ONNX Runtime in 8 bits, that of the simulation, and the session."""
    exact, path = folder / "model.onnx", folder / "model.int8.onnx"
    module, product = graph_of(weight, exact), Product("product", (0,), 1.0, low)
    weights = round_weights(module, [product])
    write_int8(module, exact, path, [product], weights)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with rounded(module, [product], weights):
        (simulated,) = module["product"](torch.from_numpy(x))  # type: ignore[operator]
    (y,) = session.run(None, {"x": x})
    return y, simulated.numpy(), session


@pytest.mark.parametrize("low", [-1.0, -0.2])
def test_every_cpu_computes_the_same_integers(low: float, tmp_path: Path) -> None:
    """Take the largest activations, and weights of which many are the largest of their column.

    With any 8-bit weights, CPUs without VNNI saturate here.
    """
    rng = np.random.default_rng(0)
    weight = rng.choice([-1.0, 0.9, 1.0], (384, 64)).astype(np.float32)
    x = rng.choice([low, 1.0, 1.0, 1.0], (1, 65, 384)).astype(np.float32)
    y, simulated, _ = run_int8(weight, x, low, tmp_path)
    np.testing.assert_allclose(y, simulated, rtol=1e-4, atol=1e-3)
    assert np.abs(y - x @ weight).max() < 0.02 * np.abs(y).max()


def test_a_row_does_not_depend_on_others_and_a_row_of_zeros_stays_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(48, 40)).astype(np.float32)
    x = (rng.normal(size=(3, 20, 48)) * 10.0 ** rng.integers(-4, 4, (3, 20, 1))).astype(np.float32)
    x[1, 3] = 0
    y, _, session = run_int8(weight, x, -1.0, tmp_path)
    for row in range(3):
        for part in (slice(0, 20), slice(3, 4), slice(5, 17)):
            (alone,) = session.run(None, {"x": x[row : row + 1, part]})
            assert np.array_equal(alone[0], y[row, part])
    exact = x @ weight
    assert not y[1, 3].any()
    sizes = np.linalg.norm(exact, axis=2)
    sizes[1, 3] = 1
    assert (np.linalg.norm(y - exact, axis=2) / sizes).max() < 0.03, "small rows are as precise as large ones"


class Chain(nn.Module):
    """Four products in turn, ids to two logits. Of the second, an input that is always 0 has enormous weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(50, WIDTH), requires_grad=False)
        self.products = nn.ModuleDict({name: Projection(nn.Linear(WIDTH, WIDTH)) for name in NAMES})
        self.read = nn.Parameter(torch.randn(WIDTH, 2), requires_grad=False)
        outlier = self.products["outlier"]
        assert isinstance(outlier, Projection)
        outlier.weights[0][5] = 1000.0

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.table[ids]
        for name in NAMES:
            y = self.products[name](x)[0]
            x = x + torch.tanh(y)
            x[..., 5] = 0
        logits: Tensor = x[:, 0] @ self.read
        return logits


@pytest.fixture
def texts() -> list[Encoding]:
    dice = np.random.default_rng(0)
    return [Encoding(dice.integers(0, 50, 6), Truncation()) for _ in range(40)]


def report(*, passed: bool) -> Gate:
    return Gate(
        pairs=20,
        flips=0.1,
        max_flips=None,
        weighted_flips=0.0 if passed else 0.1,
        max_weighted_flips=0.001,
        mean_probability_shift=0.0,
        max_probability_shift=0.0,
        temperature=1.0,
        alone_and_in_a_batch=0.0,
    )


def test_an_outlier_product_is_kept_in_fp32_and_no_other(texts: list[Encoding]) -> None:
    model, written = Chain(), []

    def write(products: Sequence[Product], weights: Rounded) -> Gate:
        assert all(name in weights for product in products for name in product.weights())
        written.append([product.name for product in products])
        return report(passed="products.outlier" not in written[-1])

    found = search_int8(model, texts, 0, write)
    assert found.kept_fp32 == ("products.outlier",)
    assert found.share_rounded == pytest.approx(3 / 4)
    assert len(written[0]) == len(NAMES), "all are tried first"
    assert sorted(written[-1]) == [f"products.{name}" for name in sorted(NAMES) if name != "outlier"]


def test_the_search_leaves_the_model_as_it_was_and_sees_the_harm(texts: list[Encoding]) -> None:
    model = Chain()
    run = torch_run(model, 0)
    before = run(texts)
    products = find_products(model, run, texts)
    assert [(product.parts, product.work) for product in products] == [((0,), WIDTH * WIDTH)] * len(NAMES)
    assert all(-1 <= product.low < 0 for product in products)
    harms = measure_harms(model, run, texts, products, round_weights(model, products))
    assert np.array_equal(run(texts), before)
    worst, *others = sorted(harms, key=lambda name: -harms[name])
    assert worst == "products.outlier"
    assert harms[worst] > 100 * harms[others[0]] > 0


def test_a_product_is_kept_for_its_harm_and_not_for_its_work() -> None:
    small, large = Product("small", (0,), 1.0, -1.0), Product("large", (0,), 10.0, -1.0)
    assert by_harm([large, small], {"small": 0.2, "large": 1.0}) == [small, large]
    assert by_harm([small, large], {"small": 0.2, "large": 3.0}) == [large, small]


@pytest.mark.parametrize("needed", range(1, 12))
def test_the_fewest_are_kept_that_pass(needed: int) -> None:
    tried: list[int] = []

    def attempt(kept: int) -> Gate:
        tried.append(kept)
        return report(passed=kept >= needed)

    kept, found = keep_fewest(attempt, 11)
    assert (kept, found.weighted_flips) == (needed, 0.0)
    assert len(tried) == len(set(tried)) <= 5


def test_what_no_share_of_fp32_saves_is_refused_with_the_products_that_were_kept(texts: list[Encoding]) -> None:
    with pytest.raises(PrecisionRefused, match=r"int8 flips .* 3 of 4 products stayed in fp32 \(products.outlier, "):
        search_int8(Chain(), texts, 0, lambda *_: report(passed=False))
