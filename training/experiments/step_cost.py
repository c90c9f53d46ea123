"""Operations and memory of a training step, counted on the recipe's own model before there are weights or data.

The model is built of fake tensors, which have shapes and no memory. It runs forward and backward as in training;
`torch.utils.flop_counter` counts its matrix products, and hooks add up what the forward pass keeps for the backward
pass, which is most of a step's memory. So a BERT, an adapter or another head costs what it costs, without formulas of
our own. A few passes over short texts give the counts for all sizes, because both are polynomials in the number of rows
and of tokens.

Attention is counted as a fused kernel computes it, and keeps what that keeps: queries, keys, values, its output and the
mask. A local layer is counted as a global one, because its window is a mask. Rows without padding are one long row to
attention, unless it is flash attention, which takes their lengths.

Bytes of a device: 4 a weight (fp32), 12 more for one that learns (gradient, and Adam's two moments), and what the
forward pass keeps; under bf16 that includes copies of the weights. DDP adds 4 for each weight that learns (its
buckets). FSDP divides what a weight takes by the number of devices, and adds twice the largest layer, which is gathered
while it computes. With checkpointing a layer keeps its input alone, and one layer at a time is computed again.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel

from tinyrm.modernbert.heads import empty_head
from tinyrm.modernbert.sets import Places, as_bias, run_body
from training.model.adapter import encoder_layers, set_attention_dropout
from training.model.precision import read_in_fp32
from training.recipe import ClozeRecipe
from training.stages.cloze import with_learning_parts

Sharing = Literal["", "DDP", "FSDP"]
Coefficients = NDArray[np.float64]
# Learning layers of the smallest model that is run. The first one differs: in ModernBERT it has one norm fewer.
FEW = 2


def counted_attention() -> dict[Any, Any]:
    """Return how to count the CPU's fused kernel, which torch's counter leaves out."""
    name = "_scaled_dot_product_flash_attention_for_cpu"
    forward: Any = sdpa_flop_count
    backward: Any = sdpa_backward_flop_count
    return {
        getattr(torch.ops.aten, name): lambda query, key, value, *_, **__: forward(query, key, value),
        getattr(torch.ops.aten, f"{name}_backward"): (
            lambda gradient, query, key, value, *_, **__: backward(gradient, query, key, value)
        ),
    }


@dataclass(frozen=True, slots=True)
class Polynomial:
    """a + b * tokens + rows * (c + d * tokens + e * tokens^2)."""

    coefficients: tuple[float, ...]

    def __call__(self, rows: float, tokens: float) -> float:
        a, b, c, d, e = self.coefficients
        return a + b * tokens + rows * (c + d * tokens + e * tokens**2)


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one pass costs, as functions of rows and tokens.

    forward, training: operations, of a forward pass and of both passes, at the recipe's micro batch.
    kept: bytes that the forward pass keeps for the backward pass.
    kept_by_layer: those of the layer that keeps the most.
    kept_outside: those of everything but the layers.
    layers: number of layers that a gradient passes through.
    hidden: width of what a layer reads.
    weights, learning: parameters of the model, adapters among them, and those that learn.
    largest_layer: parameters of the largest layer, embeddings included.
    is_one_row: whether the rows of a pass are one row to attention, in which a mask keeps them apart.
    """

    forward: Polynomial
    training: Polynomial
    kept: Polynomial
    kept_by_layer: Polynomial
    kept_outside: Polynomial
    layers: int
    hidden: int
    weights: int
    learning: int
    largest_layer: int
    is_one_row: bool = False

    def operations(self, rows: int, tokens: float, *, backward: bool = True) -> float:
        """Return the operations of a pass over `rows` sequences of `tokens` tokens, forward only or both ways."""
        return (self.training if backward else self.forward)(*self.seen(rows, tokens))

    def seen(self, rows: int, tokens: float) -> tuple[int, float]:
        """Return rows and tokens as attention sees them."""
        return (1, rows * tokens) if self.is_one_row and rows else (rows, tokens)

    def kept_bytes(self, rows: int, tokens: float) -> float:
        """Return what a pass keeps for its backward pass."""
        return self.kept(*self.seen(rows, tokens))

    def memory(
        self, rows: int, tokens: int, *, checkpointing: bool = False, sharing: Sharing = "", devices: int = 1
    ) -> float:
        """Return the bytes that a device needs for a pass over `rows` sequences of `tokens` tokens."""
        held = 4 * self.weights + 12 * self.learning
        if sharing == "DDP":
            held += 4 * self.learning
        elif sharing == "FSDP":
            held = held // devices + 2 * 4 * self.largest_layer
        if not checkpointing:
            return held + self.kept_bytes(rows, tokens)
        inputs = 4 * self.hidden * self.layers * rows * tokens
        seen = self.seen(rows, tokens)
        return held + self.kept_outside(*seen) + inputs + self.kept_by_layer(*seen)


def empty_model(recipe: ClozeRecipe, config: PreTrainedConfig) -> PreTrainedModel | PeftModel:
    """Return the model that the recipe trains, on torch's meta device: shapes without weights."""
    if recipe.head == "cloze":
        with torch.device("meta"):
            empty = AutoModelForMaskedLM.from_config(config)
    else:
        empty = empty_head(recipe.head, config, recipe.sets)
    if recipe.attention == "eager":
        empty.set_attn_implementation("eager")
    if recipe.attention_dropout is not None:
        set_attention_dropout(empty, recipe.attention_dropout)
    return with_learning_parts(empty, recipe)


def step_cost(recipe: ClozeRecipe, config: PreTrainedConfig, *, on_cpu: bool = False) -> StepCost:
    """Return what the recipe's passes cost.

    Layers of one kind cost the same, so it is enough to run a few of them.

    on_cpu: attention with dropout keeps its whole matrix, because the CPU has no fused kernel for it.
    """
    model = empty_model(recipe, config)
    own = [sum(p.numel() for p in layer.parameters()) for layer in encoder_layers(whole(model))]
    counts = count_passes(recipe, config, on_cpu=on_cpu)
    return StepCost(
        **{name: Polynomial(tuple(values)) for name, values in counts.items()},
        layers=len(own) - (recipe.frozen_layers if gradient_ends(model) else 0),
        hidden=config.hidden_size,
        weights=sum(p.numel() for p in model.parameters()),
        learning=sum(p.numel() for p in model.parameters() if p.requires_grad),
        largest_layer=max(*own, whole(model).get_input_embeddings().weight.numel()),
        is_one_row=recipe.is_flat and recipe.attention != "flash_attention_2",
    )


def count_passes(recipe: ClozeRecipe, config: PreTrainedConfig, *, on_cpu: bool) -> dict[str, Coefficients]:
    """Return the polynomials of StepCost by name."""
    frozen, learning = recipe.frozen_layers, config.num_hidden_layers - recipe.frozen_layers
    some = min(frozen, 1)
    if recipe.head == "set" or frozen + learning <= some + FEW:  # some layers of a set differ from others
        return run_passes(recipe, config, on_cpu=on_cpu)
    few = run_passes(*shortened(recipe, config, some, FEW), on_cpu=on_cpu)
    more = run_passes(*shortened(recipe, config, some, FEW + 1), on_cpu=on_cpu)
    more_frozen = run_passes(*shortened(recipe, config, some + 1, FEW), on_cpu=on_cpu) if frozen > some else few
    return {
        name: few[name]
        + (learning - FEW) * (more[name] - few[name])
        + (frozen - some) * (more_frozen[name] - few[name])
        for name in few
    }


def shortened(
    recipe: ClozeRecipe, config: PreTrainedConfig, frozen: int, learning: int
) -> tuple[ClozeRecipe, PreTrainedConfig]:
    """Return both for a model with so many layers."""
    short = copy.deepcopy(config)
    short.num_hidden_layers = frozen + learning
    if getattr(short, "layer_types", None) is not None:
        short.layer_types = short.layer_types[: frozen + learning]
    return recipe.model_copy(update={"frozen_layers": frozen}), short


def run_passes(recipe: ClozeRecipe, config: PreTrainedConfig, *, on_cpu: bool) -> dict[str, Coefficients]:
    """Return the polynomials of StepCost by name, of the model as it is."""
    model = empty_model(recipe, config)
    with FakeTensorMode():
        fake_weights(model)
        if not on_cpu:
            set_attention_dropout(whole(model), 0.0)
        read_in_fp32(model)
        model.train()
        # The rows of a pass share some of its work, such as the norms of DoRA, so there are as many as in training.
        rows = recipe.optimization.micro_batch_size
        both = {size: run_pass(model, recipe, size, backward=True) for size in ((rows, 32), (rows, 64), (rows, 128))}
        passes = {size: run_pass(model, recipe, size, backward=False) for size in ((2 * rows, 32), (2 * rows, 64))}
        passes |= both
    layers = [number for number in passes[rows, 32].kept if number is not None]
    return {
        "forward": through({size: each.forward for size, each in both.items()}),
        "training": through({size: each.training for size, each in both.items()}),
        "kept": through({size: sum(each.kept.values()) for size, each in passes.items()}),
        "kept_outside": through({size: each.kept.get(None, 0) for size, each in passes.items()}),
        "kept_by_layer": through({size: max(each.kept[layer] for layer in layers) for size, each in passes.items()}),
    }


def through(points: Mapping[tuple[int, int], float]) -> Coefficients:
    """Return the coefficients of the Polynomial with these values at (rows, tokens).

    Five points determine it; of three, all with as many rows, the first two coefficients are zero.
    """
    is_whole = len(points) == 5
    terms = [[*((1, tokens) if is_whole else ()), rows, rows * tokens, rows * tokens**2] for rows, tokens in points]
    solved = np.linalg.solve(np.array(terms, dtype=float), np.array(list(points.values()), dtype=float))
    return solved if is_whole else np.concatenate([np.zeros(2), solved])


def gradient_ends(model: PreTrainedModel | PeftModel) -> bool:
    """Return whether no gradient passes through the frozen layers, because nothing below them learns."""
    return not whole(model).get_input_embeddings().weight.requires_grad


@dataclass(slots=True)
class Pass:
    """forward, training: operations. kept: number of a layer (None outside the layers) -> bytes that are kept."""

    forward: int = 0
    training: int = 0
    kept: dict[int | None, int] = field(default_factory=dict)


def run_pass(model: PreTrainedModel | PeftModel, recipe: ClozeRecipe, size: tuple[int, int], *, backward: bool) -> Pass:
    """Run one pass over `size`, (rows, tokens), and count."""
    counts = Pass()
    half = recipe.optimization.precision == "bf16"
    with FlopCounterMode(display=False, custom_mapping=counted_attention()) as counter:
        with kept_tensors(model, counts.kept), torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = run_model(whole(model), recipe, *size)
        counts.forward = counter.get_total_flops()
        if backward:
            torch.autograd.backward(loss)
            counts.training = counter.get_total_flops()
    return counts


@contextmanager
def kept_tensors(model: PreTrainedModel | PeftModel, kept: dict[int | None, int]) -> Iterator[None]:
    """Add up the bytes of the storages that are kept for a backward pass, each once, without the weights themselves."""
    # Held, so that no storage gets the place of another one.
    reference: Any = StorageWeakRef
    seen = {reference(storage): storage for storage in (p.untyped_storage() for p in model.parameters())}
    running: list[int | None] = [None]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if reference(storage) not in seen:
            seen[reference(storage)] = storage
            kept[running[-1]] = kept.get(running[-1], 0) + storage.nbytes()
        return tensor

    def enter(number: int) -> Callable[..., None]:
        return lambda *_: running.append(number)

    def leave(*_: Any) -> None:
        running.pop()

    layers = encoder_layers(whole(model))
    hooks = [layer.register_forward_pre_hook(enter(i)) for i, layer in enumerate(layers)]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def run_model(model: PreTrainedModel, recipe: ClozeRecipe, rows: int, tokens: int) -> Tensor:
    """Return a loss of what the head reads, as training computes it, without looking at a value: there are none."""
    ids = torch.zeros(rows, tokens, dtype=torch.long)
    if recipe.head == "set":
        states = run_body(model, ids, torch.ones_like(ids), Places(ids, ids, ids.bool()))
        scores: Tensor = model.read(states[:, :2].flatten(0, 1))
        return scores.float().sum()
    # Some row of a batch is padded. Flash attention takes lengths in place of a mask.
    has_mask = recipe.attention not in ("flash_attention_2", "flex_attention")
    seen = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool) if has_mask else None
    if seen is not None and recipe.attention == "eager":
        seen = as_bias(seen[:, 0])
    masks: Any = {"full_attention": seen, "sliding_attention": seen} if has_windows(model) else seen
    outputs = model.base_model(input_ids=ids, attention_mask=masks)
    read = outputs.last_hidden_state
    if recipe.head == "pair-mean":
        read = read.mean(dim=1)
    else:
        pooled = outputs.get("pooler_output")
        read = read[:, 0] if pooled is None else pooled
    for module in above_the_body(model):
        read = module(read)
    return read.float().logsumexp(dim=-1).sum()


def above_the_body(model: PreTrainedModel) -> list[nn.Module]:
    return [module for module in model.children() if module is not model.base_model]


def has_windows(model: PreTrainedModel) -> bool:
    """Return whether a model has local layers, which read another mask than its global ones."""
    return getattr(model.config, "layer_types", None) is not None


def fake_weights(model: nn.Module) -> None:
    """Put the weights of a model on a CPU, in the current mode. Those that modules share remain shared.

    `Module.to_empty` does neither.
    """
    made: dict[int, Tensor] = {}
    for module in list(model.modules()):
        for name, old in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if id(old) not in made:
                new = torch.empty(old.shape, dtype=old.dtype)
                made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
            setattr(module, name, made[id(old)])


def whole(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the model without the adapter's wrapper; its layers are adapted in place."""
    base: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    return base
