"""Move difficulty from activations to weights before int8, so that one scale of a tensor fits all its channels.

SmoothQuant (arXiv 2211.10438): with a = max |activation| and w = max |weight| of an input channel, activations are
divided by s = a^alpha / w^(1 - alpha) and weights multiplied by it. The division costs nothing at run time: it is
folded into the weights that make the activation (a norm's weight, the value rows, the half of the GLU that passes no
activation function), so the logits in fp32 stay the same.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from tinyrm.modernbert.model import Layer, PreferenceModel, Projection

# Measured on the first starter (docs/notes/performance.md): 0.5 leaves a third more noise, 0.9 gains nothing.
ALPHA = 0.75
MIN_MAGNITUDE = 1e-5


def equalise(model: PreferenceModel, maxima: dict[str, Tensor]) -> None:
    """Rescale the channels between layers. maxima: from `channel_maxima`."""
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    for i, layer in enumerate(layers):
        rescale(norm_columns(layer.attention_norm), layer.qkv, maxima[f"layers.{i}.qkv"])
        rescale(norm_columns(layer.mlp_norm), layer.gate_up, maxima[f"layers.{i}.gate_up"])
        rescale(output_columns(layer.qkv, 2), layer.out, maxima[f"layers.{i}.out"])
        rescale(output_columns(layer.gate_up, 1), layer.down, maxima[f"layers.{i}.down"])


def channel_maxima(model: nn.Module) -> tuple[dict[str, Tensor], list[torch.utils.hooks.RemovableHandle]]:
    """Observe every projection's input. Return name -> largest magnitude of each channel, filled as the model runs."""
    maxima: dict[str, Tensor] = {}

    def observe(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0].detach().abs().flatten(0, -2).amax(dim=0)
            maxima[name] = torch.maximum(maxima[name], seen) if name in maxima else seen

        return hook

    found = ((name, module) for name, module in model.named_modules() if isinstance(module, Projection))
    return maxima, [module.register_forward_pre_hook(observe(name)) for name, module in found]


def norm_columns(norm: nn.Module) -> list[Tensor]:
    """Return the factors and biases of a norm; nothing for the first layer, which has no norm."""
    return [p for p in (getattr(norm, "weight", None), getattr(norm, "bias", None)) if p is not None]


def output_columns(projection: Projection, part: int) -> list[Tensor]:
    """Return the weights and biases of one part of a projection."""
    biases: Iterable[Tensor] = [projection.biases[part]] if len(projection.biases) else []
    return [projection.weights[part], *biases]


def rescale(producers: list[Tensor], reader: Projection, maxima: Tensor) -> None:
    """Divide the weights that produce an activation by s, and multiply those that read it.

    maxima: largest magnitude of each of its channels.
    """
    if not producers:
        return
    heaviest = torch.stack([w.abs().amax(dim=1) for w in reader.weights]).amax(dim=0)
    scale = maxima.clamp(min=MIN_MAGNITUDE) ** ALPHA / heaviest.clamp(min=MIN_MAGNITUDE) ** (1 - ALPHA)
    scale = scale / scale.mean()
    with torch.no_grad():
        for producer in producers:
            producer.div_(scale)
        for weight in reader.weights:
            weight.mul_(scale[:, None])
