"""What a checkpoint is, from its files alone: class, head, library, budget. Nothing is loaded, no code of it runs.

Imports no torch, so that a model of another kind is refused in a second, with what it is and what would work.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from export.cross_encoder import (
    TRANSFORMER_FILE,
    Layer,
    is_cross_encoder,
    read_activation,
    read_modules,
    read_object,
    read_score_layers,
    refuse_inputs,
)
from tinyrm.errors import InvalidInput
from tinyrm.manifest import Head
from tinyrm.modernbert.files import ADAPTER_CONFIG, listed
from tinyrm.template import Reads

# Class of `transformers` -> the type of its configuration.
CLASSIFIERS = {
    "ModernBertForSequenceClassification": "modernbert",
    "BertForSequenceClassification": "bert",
    "RobertaForSequenceClassification": "roberta",
    "XLMRobertaForSequenceClassification": "xlm-roberta",
    "ElectraForSequenceClassification": "electra",
    "DebertaV2ForSequenceClassification": "deberta-v2",
}
PAIRRM = "DebertaV2PairRM"
SUPPORTED = (
    f"supported are masked LMs, {', '.join(CLASSIFIERS)} with one label, sentence-transformers' cross-encoders on the "
    f"same families, and {PAIRRM}"
)
# The ids in PairRM's configuration -> the special tokens of its tokenizer, before the prompt and the responses.
PAIRRM_TOKENS = {
    "source_prefix_id": "<|source|>",
    "cand1_prefix_id": "<|candidate1|>",
    "cand2_prefix_id": "<|candidate2|>",
}
# Without another limit. More tokens cost more than they tell, and --max-tokens allows what the positions allow.
DEFAULT_MAX_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Recognised:
    """Another project's model that can become a bundle.

    architecture: the class of its configuration.
    library: what it was made with.
    reads_pair: whether it is known to read prompt and response as the two texts that its tokenizer joins.
    max_tokens: the longest sequence that its own library would give it; None if its files name no limit.
    layers: what lies between the pooled state and the score of a cross-encoder made of modules.
    markers: the special tokens at which a PairRM is read, and their ids in its configuration.
    """

    architecture: str
    library: Literal["transformers", "sentence-transformers", "llm-blender"]
    head: Head
    reads_pair: bool
    max_tokens: int | None
    layers: tuple[Layer, ...] = ()
    markers: dict[str, int] = field(default_factory=dict)

    @property
    def reads(self) -> Reads:
        return "pair" if self.head.kind == "pair" else "response"

    def describe(self) -> str:
        """Return the model in one line."""
        at = {"first": "its first token", "last": "its last token", "mean": "the mean of its tokens"}
        where = at.get(self.head.read_at, "the tokens before prompt and responses")
        layers = "".join(f", {layer.describe()}" for layer in self.layers)
        return f"{self.architecture} of {self.library}, read at {where}{layers}, then {self.head.activation}"


def recognise(name: str, folder: Path) -> Recognised | None:
    """Return what the checkpoint in `folder` is; None for a masked LM.

    name: the model's folder or hub id, for messages.

    Raises InvalidInput, which names what was found and what is supported.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        raise InvalidInput(f"{name} is an adapter, not a model: name its base as the model, and this as its adapter")
    config = read_object(name, folder, "config.json")
    architecture = read_architecture(name, config)
    if architecture.endswith("ForMaskedLM"):
        return None
    if architecture == PAIRRM:
        return recognise_pairrm(name, config)
    is_of_modules = architecture not in CLASSIFIERS
    if is_of_modules:
        refuse_body(name, folder, config, architecture)
        read_at, layers = read_modular(name, folder, config)
    else:
        read_at, layers = read_classifier(name, folder, config, architecture), ()
    activation: Literal["identity", "sigmoid"] = "identity"
    if by_library := is_cross_encoder(name, folder, config):
        refuse_inputs(name, folder)
        activation = read_activation(name, folder, config)
    return Recognised(
        architecture=architecture,
        library="sentence-transformers" if by_library else "transformers",
        head=Head(kind="score", read_at=read_at, outputs=1, activation=activation),
        # The tokenizers of all other families join two texts; ModernBERT's reward models read chats or pairs.
        reads_pair=by_library or config["model_type"] != "modernbert",
        max_tokens=token_limit(name, folder),
        layers=layers,
    )


def read_modular(
    name: str, folder: Path, config: Mapping[str, Any]
) -> tuple[Literal["first", "mean"], tuple[Layer, ...]]:
    """Return where a cross-encoder made of modules reads, and its layers. Raises InvalidInput."""
    read_at, layers = read_score_layers(name, folder, read_modules(name, folder), int(config.get("hidden_size", 0)))
    if read_at == "first" or (read_at == "mean" and config["model_type"] == "modernbert"):
        return read_at, layers
    raise InvalidInput(
        f"{name} is a cross-encoder that reads its {read_at} token: supported are cls, and mean on a ModernBERT"
    )


def read_classifier(name: str, folder: Path, config: Mapping[str, Any], architecture: str) -> Literal["first", "mean"]:
    """Return where a classifier reads. Raises InvalidInput if its output is no score, or if it has more parts."""
    if config.get("model_type") != CLASSIFIERS[architecture]:
        raise InvalidInput(f"{name} is a {architecture} of the type {config.get('model_type')!r}; {SUPPORTED}")
    refuse_labels(name, config, architecture)
    refuse_modules(name, folder)
    return read_pooling(name, config)


def read_architecture(name: str, config: Mapping[str, Any]) -> str:
    """Return the class of the checkpoint. Raises InvalidInput if there is none, or one that only its own code has."""
    if config.get("ranker_type") == "pairranker":
        raise InvalidInput(
            f"{name} is a PairRM whose files do not describe its encoder; llm-blender/PairRM-hf has the same weights"
        )
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise InvalidInput(f"{name} names no architecture in its config.json; {SUPPORTED}")
    architecture = named[0]
    families = (*CLASSIFIERS.values(),)
    if config.get("auto_map") and (architecture not in CLASSIFIERS or config.get("model_type") not in families):
        raise InvalidInput(f"{name} is a {architecture} that runs code of its own, which is never run; {SUPPORTED}")
    return architecture


def refuse_body(name: str, folder: Path, config: Mapping[str, Any], architecture: str) -> None:
    """Raise InvalidInput for a class that has no score, unless sentence-transformers' modules give it one."""
    is_body = config.get("model_type") in CLASSIFIERS.values() and architecture.endswith("Model")
    if not is_body:
        kind = "a decoder" if architecture.endswith(("ForCausalLM", "LMHeadModel")) else "not supported"
        raise InvalidInput(f"{name} is a {architecture}, which is {kind}; {SUPPORTED}")
    if is_cross_encoder(name, folder, config):
        return
    kinds = [module.kind for module in read_modules(name, folder)]
    what = f"sentence-transformers' embedding model ({', '.join(kinds)})" if kinds else "an encoder without a head"
    raise InvalidInput(
        f"{name} is {what} on a {architecture}: nothing in it scores a response. Train a head on it first, by a recipe "
        "with `head: pointwise`"
    )


def recognise_pairrm(name: str, config: Mapping[str, Any]) -> Recognised:
    """Return a PairRM. Raises InvalidInput if its configuration lacks the tokens at which it is read."""
    if config.get("model_type") != "deberta-v2":
        raise InvalidInput(f"{name} is a {PAIRRM} of the type {config.get('model_type')!r}; supported is 'deberta-v2'")
    if lacking := [key for key in PAIRRM_TOKENS if not isinstance(config.get(key), int)]:
        raise InvalidInput(f"{name} is a {PAIRRM} without {listed(lacking)} in its config.json")
    head = Head(kind="pair", read_at="segments", outputs=2, activation="identity")
    markers = {marker: int(config[key]) for key, marker in PAIRRM_TOKENS.items()}
    return Recognised(PAIRRM, "llm-blender", head, reads_pair=False, max_tokens=DEFAULT_MAX_TOKENS, markers=markers)


def refuse_labels(name: str, config: Mapping[str, Any], architecture: str) -> None:
    """Raise InvalidInput for a head whose outputs are not one score."""
    labels = config.get("id2label")
    names = list(map(str, labels.values())) if isinstance(labels, dict) else []
    count = len(names) or int(config.get("num_labels", 2))
    if count != 1:
        shown = f" ({listed(names)})" if names else ""
        raise InvalidInput(
            f"{name} is a {architecture} with {count} labels{shown}, which are no score; a score has one label"
        )
    problem = config.get("problem_type")
    if problem == "multi_label_classification":
        raise InvalidInput(
            f"{name} is a {architecture} for {problem}, whose output is no score; supported is regression"
        )


def refuse_modules(name: str, folder: Path) -> None:
    """Raise InvalidInput if sentence-transformers adds anything to a classifier."""
    kinds = [module.kind for module in read_modules(name, folder)]
    if kinds not in ([], ["Transformer"]):
        raise InvalidInput(
            f"{name} is a classifier with the modules {', '.join(kinds)}; supported is Transformer alone"
        )


def read_pooling(name: str, config: Mapping[str, Any]) -> Literal["first", "mean"]:
    """Return where a classifier reads. Raises InvalidInput."""
    if config.get("model_type") != "modernbert":
        return "first"
    pooling = config.get("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        raise InvalidInput(f"{name} pools by {pooling!r}; supported are cls and mean")
    return "mean" if pooling == "mean" else "first"


def token_limit(name: str, folder: Path) -> int | None:
    """Return the smallest limit of tokens that tokenizer or library name; None without one."""
    named = (
        read_object(name, folder, "tokenizer_config.json").get("model_max_length"),
        read_object(name, folder, TRANSFORMER_FILE).get("max_seq_length"),
    )
    # A tokenizer without a limit is saved with one of 10 to the 30th.
    limits = [int(limit) for limit in named if isinstance(limit, int | float) and 0 < limit < 10**6]
    return min(limits, default=None)
