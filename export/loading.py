"""Open another project's model as a class of `transformers`: every weight that its files hold, and no other."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from export.cross_encoder import Layer
from export.recognition import PAIRRM, Recognised
from tinyrm.errors import InvalidInput
from tinyrm.families.modular import replace_head
from tinyrm.families.pairrm import PairRM
from tinyrm.modernbert.checkpoint import load_checked, read_config
from tinyrm.modernbert.files import checkpoint_folder, input_errors, listed, weight_files


def load_recognised(model: str, recognised: Recognised, revision: str | None = None) -> PreTrainedModel:
    """Return the model in evaluation mode, in fp32. Raises InvalidInput for weights that are missing or do not fit."""
    folder = checkpoint_folder(model, revision)
    if recognised.architecture == PAIRRM:
        return load_checked(PairRM, model, folder).eval()
    if not recognised.layers:
        return load_checked(AutoModelForSequenceClassification, model, folder).eval()
    config = read_config(model, folder)
    config.num_labels = 1
    if hasattr(config, "classifier_pooling"):
        config.classifier_pooling = "mean" if recognised.head.read_at == "mean" else "cls"
    loaded = load_checked(AutoModelForSequenceClassification, model, folder, new_head=True, config=config)
    return replace_head(loaded, [layer for part in recognised.layers for layer in load_layers(folder, part)]).eval()


def load_layers(folder: Path, layer: Layer) -> list[nn.Module]:
    """Return a layer of a cross-encoder, and its activation if it has one. Raises InvalidInput."""
    is_norm = layer.kind == "LayerNorm"
    module = nn.LayerNorm(layer.outputs) if is_norm else nn.Linear(layer.inputs, layer.outputs, bias=layer.bias)
    prefix = "norm." if is_norm else "linear."
    tensors = {name.removeprefix(prefix): tensor for name, tensor in read_tensors(folder / layer.path).items()}
    wanted = module.state_dict()
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if wrong := [
        name for name in sorted({*wanted, *shapes}) if name not in wanted or shapes.get(name) != wanted[name].shape
    ]:
        raise InvalidInput(f"the weights in {folder / layer.path} do not fit a {layer.kind}: {listed(wrong)}")
    module.load_state_dict(tensors)
    activation = [] if layer.activation == "Identity" else [getattr(nn, layer.activation)()]
    return [module, *activation]


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a module's folder, in fp32. Raises InvalidInput."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        with input_errors(f"{file} is damaged"):
            read: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
            tensors |= {name: tensor.float() for name, tensor in read.items()}
    return tensors
