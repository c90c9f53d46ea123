"""The files of sentence-transformers: which modules a model is made of, and what follows its logits.

Nothing that they name is imported: names of classes are compared with those known here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tinyrm.errors import InvalidInput
from tinyrm.modernbert.files import MODULES_FILE, input_errors

LIBRARY_FILE = "config_sentence_transformers.json"
TRANSFORMER_FILE = "sentence_bert_config.json"
CROSS_ENCODER = "CrossEncoder"
# The names that the library gave one way to pool, in its newer and its older files.
POOLING: dict[str, Literal["first", "mean", "last"]] = {
    "cls": "first",
    "mean": "mean",
    "lasttoken": "last",
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
ACTIVATIONS: dict[str, Literal["identity", "sigmoid"]] = {"Identity": "identity", "Sigmoid": "sigmoid"}
DENSE_ACTIVATIONS = ("GELU", "Identity", "ReLU", "SiLU", "Tanh")
ORDER = "supported are Transformer, Pooling, then Dense and LayerNorm in any order, the last a Dense with one output"


@dataclass(frozen=True, slots=True)
class Module:
    """One entry of modules.json: the class by its last name, and its folder."""

    kind: str
    path: str


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer between the pooled state and the score.

    path: its folder in the checkpoint, which holds its weights.
    outputs: its width; that of a LayerNorm is its input's.
    activation: what follows a Dense, by its class in torch.nn.
    """

    kind: Literal["Dense", "LayerNorm"]
    path: str
    inputs: int
    outputs: int
    bias: bool = True
    activation: str = "Identity"

    def describe(self) -> str:
        """Return the layer as one word or two."""
        return self.kind if self.activation == "Identity" else f"{self.kind} {self.activation}"


def read_object(name: str, folder: Path, file: str) -> dict[str, Any]:
    """Return the object in a file of the checkpoint `name`; empty if there is no such file. Raises InvalidInput."""
    path = folder / file
    if not path.is_file():
        return {}
    with input_errors(f"{file} of {name} cannot be read"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"it holds no object but a {type(content).__name__}")
    return content


def read_modules(name: str, folder: Path) -> list[Module]:
    """Return the modules in their order; none if the library did not write this checkpoint. Raises InvalidInput."""
    path = folder / MODULES_FILE
    if not path.is_file():
        return []
    with input_errors(f"{MODULES_FILE} of {name} cannot be read"):
        entries = json.loads(path.read_text(encoding="utf-8"))
        modules = [(str(entry["type"]), str(entry["path"])) for entry in entries]
    for kind, place in modules:
        if not kind.startswith("sentence_transformers."):
            raise InvalidInput(f"{name} needs the module {kind}, which is code of its own; {ORDER}")
        if place and (place != Path(place).name or place.startswith(".")):
            raise InvalidInput(f"{MODULES_FILE} of {name} names {place!r}, which is no folder of the checkpoint")
    return [Module(kind.rpartition(".")[2], place) for kind, place in modules]


def is_cross_encoder(name: str, folder: Path, config: Mapping[str, Any]) -> bool:
    """Return whether the files say that the library's CrossEncoder wrote the model, in any of its versions."""
    return (
        read_object(name, folder, LIBRARY_FILE).get("model_type") == CROSS_ENCODER
        or "activation_fn" in (config.get("sentence_transformers") or {})
        or config.get("sbert_ce_default_activation_function") is not None
    )


def read_activation(name: str, folder: Path, config: Mapping[str, Any]) -> Literal["identity", "sigmoid"]:
    """Return what the library applies to the score of one label: the sigmoid, unless the files name another.

    Raises InvalidInput for any other function.
    """
    named = (
        read_object(name, folder, LIBRARY_FILE).get("activation_fn")
        or (config.get("sentence_transformers") or {}).get("activation_fn")
        or config.get("sbert_ce_default_activation_function")
    )
    if named is None:
        return "sigmoid"
    kind = str(named).rpartition(".")[2]
    if not str(named).startswith("torch.") or kind not in ACTIVATIONS:
        raise InvalidInput(
            f"{name} applies {named} to its score; supported are {' and '.join(ACTIVATIONS)} of torch.nn"
        )
    return ACTIVATIONS[kind]


def refuse_inputs(name: str, folder: Path) -> None:
    """Raise InvalidInput if the library would change the texts before the model reads them."""
    settings = read_object(name, folder, LIBRARY_FILE)
    prompts = {key: text for key, text in (settings.get("prompts") or {}).items() if text}
    if settings.get("default_prompt_name") or prompts:
        raise InvalidInput(f"{name} puts a text of its own before every prompt: {prompts}; that is not supported")
    if read_object(name, folder, TRANSFORMER_FILE).get("do_lower_case"):
        raise InvalidInput(
            f"{name} lowers its texts before its tokenizer (do_lower_case in {TRANSFORMER_FILE}); that is not supported"
        )


def read_score_layers(
    name: str, folder: Path, modules: Sequence[Module], hidden: int
) -> tuple[Literal["first", "mean", "last"], tuple[Layer, ...]]:
    """Return where a cross-encoder made of modules pools, and the layers that follow.

    hidden: the width of the encoder's states.

    Raises InvalidInput for any other order, a sum that skips layers, or widths that do not fit.
    """
    kinds = [module.kind for module in modules]
    found = f"{name} is made of {', '.join(kinds)}"
    tail = [kind for kind in kinds[2:] if kind != "Dropout"]  # it does nothing once a model is trained
    if kinds[:2] != ["Transformer", "Pooling"] or not tail or tail[-1] != "Dense" or set(tail) - {"Dense", "LayerNorm"}:
        raise InvalidInput(f"{found}; {ORDER}")
    pooling = read_object(name, folder, f"{modules[1].path}/config.json")
    chosen = pooling.get("pooling_mode") or [key for key, on in pooling.items() if on is True and "pooling_mode" in key]
    chosen = [chosen] if isinstance(chosen, str) else list(chosen)
    if len(chosen) != 1 or chosen[0] not in POOLING:
        raise InvalidInput(f"{found} and pools by {', '.join(map(str, chosen))}; supported are cls, mean and lasttoken")
    layers: list[Layer] = []
    for module in modules[2:]:
        if module.kind == "Dropout":
            continue
        width = layers[-1].outputs if layers else hidden
        layer = read_layer(name, module, read_object(name, folder, f"{module.path}/config.json"))
        if layer.inputs != width:
            raise InvalidInput(f"{module.path} of {name} reads {layer.inputs} numbers and gets {width}")
        layers.append(layer)
    if layers[-1].outputs != 1:
        raise InvalidInput(f"{found} and has {layers[-1].outputs} outputs; a score has one")
    if layers[-1].activation != "Identity":
        raise InvalidInput(f"{found} and applies {layers[-1].activation} in its last layer; supported is Identity")
    return POOLING[chosen[0]], tuple(layers)


def read_layer(name: str, module: Module, settings: Mapping[str, Any]) -> Layer:
    """Return a layer by its settings. Raises InvalidInput."""
    with input_errors(f"{module.path}/config.json of {name} cannot be read"):
        if module.kind == "LayerNorm":
            width = int(settings["dimension"])
            return Layer("LayerNorm", module.path, width, width)
        inputs, outputs = int(settings["in_features"]), int(settings["out_features"])
    named = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = named.rpartition(".")[2]
    if not named.startswith("torch.nn.") or activation not in DENSE_ACTIVATIONS:
        raise InvalidInput(f"{module.path} of {name} applies {named}; supported are {', '.join(DENSE_ACTIVATIONS)}")
    if settings.get("use_residual"):
        raise InvalidInput(
            f"{module.path} of {name} adds its input to its output (use_residual); that is not supported"
        )
    return Layer("Dense", module.path, inputs, outputs, bool(settings.get("bias", True)), activation)
