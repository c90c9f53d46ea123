"""The matrix products of an optimised graph, and their arithmetic in 8 bits, simulated in torch.

Activations have one scale for each row, its largest magnitude: nothing else in a batch changes it, and a large token
does not cost small ones their digits. Weights have one for each column.

    x[i, :] @ w[:, j]  ~  max|x[i, :]| * column[j] * sum over k of u[i, k] * q[k, j]

u: the row divided by its largest magnitude, as an unsigned integer above a zero point: the range of a row is from -1 to
1, or from a higher end, where an activation function makes few negative values.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from export.parity import Run, run_alone
from tinyrm.encoding import Encoding
from tinyrm.modernbert.model import Projection

# Of unsigned activations, and of signed weights.
TOP, LEVELS = 255, 127
# x86 kernels without VNNI (vpmaddubsw) add the products of two neighbouring inputs in 16 bits, which would saturate:
# 255 * 128 < 2**15. With this limit their sums are exact, so that every CPU computes the same integers.
MAX_NEIGHBOURS = 128
# Scales to try, relative to that which gives the largest weight of a column LEVELS. Smaller integers seldom meet the
# limit and are coarser; the best is between.
SCALES = np.linspace(0.5, 1.0, 11)
# Of rows passing a product: with fewer, it is one row of a text that is read, and rounding would save nothing.
FEW_ROWS = 0.2
SMALLEST_ROW = 1e-12

# Integers [inputs, outputs] and scales [outputs] of weights, by the names of the parameters.
Rounded = Mapping[str, tuple[NDArray[np.int8], NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class Product:
    """A projection of the model, whose parts are products of one input.

    name: of the module in the model.
    parts: those that all rows of a text pass.
    work: multiplications of these parts for a token of the texts.
    low: the lower end of a row, relative to its largest magnitude, -1 to 0.
    """

    name: str
    parts: tuple[int, ...]
    work: float
    low: float

    @property
    def scale(self) -> float:
        """The step of activations, relative to the largest magnitude of the row."""
        return (1 - self.low) / TOP

    @property
    def zero_point(self) -> int:
        return round(-self.low / self.scale)

    def weights(self) -> list[str]:
        """Return the names of the parameters that are rounded."""
        return [f"{self.name}.weights.{part}" for part in self.parts]

    def round_rows(self, x: Tensor) -> Tensor:
        """Return activations [..., inputs] as the integers stand for them."""
        largest = x.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_ROW)
        integers = ((x / largest / self.scale).round() + self.zero_point).clamp(0, TOP)
        rounded: Tensor = (integers - self.zero_point) * self.scale * largest
        return rounded


def projections(model: nn.Module) -> dict[str, Projection]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Projection)}


def find_products(model: nn.Module, run: Run, sequences: Sequence[Encoding]) -> list[Product]:
    """Return the products that all rows of a text pass, with what these sequences show of their inputs."""
    rows: dict[tuple[str, int], int] = {}
    lows: dict[str, float] = {}

    def observe(name: str, module: Projection) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
            x = inputs[0].detach().flatten(0, -2)
            for part in options.get("only") or range(module.parts):
                rows[name, part] = rows.get((name, part), 0) + len(x)
            lowest = (x / x.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST_ROW)).amin()
            lows[name] = min(lows.get(name, 0.0), float(lowest))

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    found = projections(model)
    hooks = [observe(name, module) for name, module in found.items()]
    run_alone(run, sequences)
    for hook in hooks:
        hook.remove()
    tokens = sum(map(len, sequences))
    products = []
    for name, module in found.items():
        parts = tuple(part for part in range(module.parts) if rows.get((name, part), 0) >= FEW_ROWS * tokens)
        work = sum(rows[name, part] * module.weights[part].numel() for part in parts) / tokens
        if parts:
            products.append(Product(name, parts, work, lows[name]))
    return products


def round_weights(model: nn.Module, products: Iterable[Product]) -> Rounded:
    """Return the integers and scales of all weights of these products, by the names of the parameters."""
    names = [name for product in products for name in product.weights()]
    return {name: round_columns(model.get_parameter(name).detach().numpy()) for name in names}


@contextmanager
def rounded(model: nn.Module, products: Iterable[Product], weights: Rounded) -> Iterator[None]:
    """Let the model compute these products as in 8 bits, but in fp32."""
    hooks: list[RemovableHandle] = []
    before: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for product in products:
            module = model.get_submodule(product.name)
            hooks.append(module.register_forward_pre_hook(round_input(product), with_kwargs=True))
            for name in product.weights():
                integers, scales = weights[name]
                weight = model.get_parameter(name)
                before.append((weight, weight.data))
                weight.data = torch.from_numpy(integers * scales)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for weight, data in before:
            weight.data = data


def round_input(product: Product) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> Any:
        only = options.get("only")
        if only is not None and not set(only) & set(product.parts):
            return None
        return (product.round_rows(inputs[0]), *inputs[1:]), options

    return hook


def round_columns(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return integers [inputs, outputs] and the scale of each column [outputs], whose product is close to the weight.

    Integers of neighbouring inputs with the same sign, 0 and 1, 2 and 3, ..., add to at most MAX_NEIGHBOURS.
    """
    largest = np.abs(weight).max(axis=0)
    largest[largest == 0] = 1
    best: NDArray[np.float32] = np.full(weight.shape[1], np.inf, dtype=np.float32)
    chosen, scales = np.zeros(weight.shape, dtype=np.int8), np.ones(weight.shape[1], dtype=np.float32)
    for relative in SCALES:
        scale = (largest / (LEVELS * relative)).astype(np.float32)
        integers = limit_neighbours(np.rint(weight / scale).clip(-LEVELS, LEVELS))
        error = ((integers * scale - weight) ** 2).sum(axis=0)
        better = error < best
        best[better], scales[better] = error[better], scale[better]
        chosen[:, better] = integers[:, better].astype(np.int8)
    return chosen, scales


def limit_neighbours(integers: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return integers [inputs, outputs], made smaller where two neighbours of one sign exceed MAX_NEIGHBOURS."""
    inputs, outputs = integers.shape
    twos = np.pad(integers, ((0, inputs % 2), (0, 0))).reshape(-1, 2, outputs)
    sums = np.abs(twos.sum(axis=1, keepdims=True))
    same_sign = (twos > 0).all(axis=1, keepdims=True) | (twos < 0).all(axis=1, keepdims=True)
    factors = np.where(same_sign & (sums > MAX_NEIGHBOURS), MAX_NEIGHBOURS / np.maximum(sums, 1), 1)
    limited: NDArray[np.float32] = np.trunc(twos * factors).reshape(-1, outputs)[:inputs].astype(np.float32)
    return limited
