"""What a training run costs before it has run: operations and memory, from sizes alone.

Operations of one sequence of S tokens. A layer's forward pass is f = 2 * (S * (4h^2 + 3hi) + 2h * S^2): the window is a
mask here, so every layer computes all pairs (see tinyrm.flops). The vocabulary-sized head runs at the mask only.

    forward                 every layer, and the head: h^2 + h * vocabulary multiply-adds
    backward, inputs        for each layer that a gradient passes through, those that are not frozen: the linear part
                            once more, attention twice
    backward, weights       the linear part once more, for each layer whose own weights learn
    DoRA, per linear        3 * 2 * S * r * (in + out) for the two factors, and 2 * in * r * (in + out) for each norm,
                            which peft computes by sending the identity through them, once a forward pass

Memory, in bytes: 4 a weight (fp32), 2 more under bf16 autocast, which keeps a cast copy; 12 a learning weight (gradient
and Adam's two moments); and what the layers that learn keep for the backward pass. That is about 10h + 4i numbers a
token and layer (inputs of both norms, of Wqkv, of the rotation, of attention, of both Wo and of Wi, both halves of the
gate, its activation and product), 2 bytes each under bf16, 4 under fp32, and two masks of S^2 a sequence. An adapted
linear keeps its inner r numbers a token, and under DoRA, whose magnitude learns, its own output and the adapter's.
It is an estimate: fragmentation and the library's own buffers come on top.
"""

from dataclasses import dataclass

from peft.tuners.lora import LoraLayer
from torch import nn

from tinyrm.flops import Geometry
from training.recipe import ClozeRecipe


@dataclass(frozen=True, slots=True)
class Learning:
    """parameters: all of the base. learning: those that learn. adapters: (in, out, rank) of each adapted linear."""

    parameters: int
    learning: int
    adapters: tuple[tuple[int, int, int], ...]


def learning_parts(model: nn.Module) -> Learning:
    """Counted on the model itself, which may be empty (torch's meta device)."""
    adapters = tuple(
        (module.in_features, module.out_features, module.r["default"])
        for module in model.modules()
        if isinstance(module, LoraLayer)
    )
    added = ("lora_A", "lora_B", "lora_magnitude_vector")
    base = [p for name, p in model.named_parameters() if not any(part in name for part in added)]
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Learning(sum(p.numel() for p in base), learning, adapters)


def training_flops(geometry: Geometry, recipe: ClozeRecipe, parts: Learning, tokens: int) -> int:
    """Operations of forward and backward of one sequence of `tokens` tokens."""
    h, i = geometry.hidden, geometry.intermediate
    linear = 2 * tokens * (4 * h * h + (3 if geometry.gated else 2) * h * i)
    attention = 2 * 2 * h * tokens * tokens
    dense, decoder = 2 * h * h, 2 * h * geometry.vocab
    head = dense + decoder
    above = geometry.layers - recipe.frozen_layers
    ends = gradient_ends_below(recipe)
    forward = geometry.layers * (linear + attention) + head
    inputs = (above if ends else geometry.layers) * (linear + 2 * attention) + head
    if recipe.dora:
        # Under the lowest Wqkv nothing learns, not even the norm before it.
        own = sum(_adapter_flops(adapter, recipe, tokens) for adapter in parts.adapters) - 2 * tokens * 3 * h * h
    else:
        own = above * linear + dense + (0 if ends else decoder)
    return forward + inputs + own


def gradient_ends_below(recipe: ClozeRecipe) -> bool:
    """Whether no gradient passes through the frozen layers, because nothing below them learns."""
    return recipe.dora is not None or (recipe.frozen_layers > 0 and recipe.freeze_embeddings)


def _adapter_flops(adapter: tuple[int, int, int], recipe: ClozeRecipe, tokens: int) -> int:
    """The norms are shared by the sequences of one forward pass."""
    wide_in, wide_out, rank = adapter
    factors = 3 * 2 * tokens * rank * (wide_in + wide_out)
    has_norm = recipe.dora is not None and recipe.dora.magnitude
    norm = 2 * wide_in * rank * (wide_in + wide_out) if has_norm else 0
    return factors + norm // recipe.optimization.micro_batch_size


def memory_bytes(geometry: Geometry, recipe: ClozeRecipe, parts: Learning, tokens: int) -> int:
    """Of one device whose forward pass reads `micro_batch_size` sequences of `tokens` tokens."""
    half = recipe.optimization.precision == "bf16"
    held = parts.parameters + (parts.learning if recipe.dora else 0)
    weights = held * (6 if half else 4) + parts.learning * 12
    layers = geometry.layers - (recipe.frozen_layers if gradient_ends_below(recipe) else 0)
    outputs = 2 if recipe.dora and recipe.dora.magnitude else 0
    adapted = sum(rank + outputs * wide_out for _, wide_out, rank in parts.adapters)
    kept = (layers * (10 * geometry.hidden + 4 * geometry.intermediate) + adapted) * tokens + 2 * tokens * tokens
    return weights + recipe.optimization.micro_batch_size * kept * (2 if half else 4)
