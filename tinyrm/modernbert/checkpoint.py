"""Checkpoints of masked LMs, for training, export, evaluation and parity checks.

In the library only `tinyrm.modernbert` and the torch engines import torch; serving on a CPU does not need it.
"""

import copy
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from tinyrm.encoding import SpecialTokens
from tinyrm.errors import InvalidInput, InvalidTemplate
from tinyrm.flops import Geometry
from tinyrm.manifest import ReadAt
from tinyrm.modernbert.files import ADAPTER_CONFIG, checkpoint_folder, input_errors, listed, weight_files

# What older checkpoints hold beside a masked LM: the parts of other tasks, and tables that are computed.
UNREAD = re.compile(r"(^|\.)(pooler|seq_relationship|sop_classifier)\.|(^|\.)(position_ids|inv_freq)$")
# A wrapper's prefix -> what to do about it.
PREFIXES = {
    "_orig_mod.": "; torch.compile adds _orig_mod.: save the model that was compiled, not the compiled one",
    "module.": "; a parallel wrapper adds module.: save the model inside it",
}


class LabelLogits(nn.Module):
    """Any masked LM with its head at the mask only: ids [batch, tokens] -> label logits [batch, 2].

    The mask is found in the ids (there is exactly one in each row), so no index can disagree with them.
    """

    def __init__(self, masked_lm: PreTrainedModel, mask_id: int, label_ids: tuple[int, int]) -> None:
        super().__init__()
        self.masked_lm = masked_lm
        self.mask_id = mask_id
        # A masked LM is its body and its head. The head is copied, and its decoder reduced to the label rows.
        body = masked_lm.base_model
        head = copy.deepcopy(nn.Sequential(*(module for module in masked_lm.children() if module is not body)))
        decoders = [n for n, m in head.named_modules() if getattr(m, "out_features", 0) == masked_lm.config.vocab_size]
        if len(decoders) != 1:
            raise InvalidTemplate(f"{type(masked_lm).__name__} has {len(decoders)} vocabulary-sized decoders, not one")
        whole: Any = head.get_submodule(decoders[0])
        rows = nn.Linear(whole.in_features, len(label_ids), bias=whole.bias is not None)
        with torch.no_grad():
            rows.weight.copy_(whole.weight[list(label_ids)])
            if whole.bias is not None:
                rows.bias.copy_(whole.bias[list(label_ids)])
        head.set_submodule(decoders[0], rows)
        self.head = head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        body = self.masked_lm.base_model
        hidden = body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask_index = (input_ids == self.mask_id).int().argmax(dim=1)
        features = hidden[torch.arange(hidden.shape[0], device=hidden.device), mask_index]
        logits: Tensor = self.head(features)
        return logits


def load_masked_lm(
    model: str, *, revision: str | None = None, new_head: bool = False, attention: str | None = None
) -> PreTrainedModel:
    """Load a masked LM from a folder or a hub id, in fp32.

    revision: branch, tag or commit of a hub id.
    new_head: whether a checkpoint of a body alone gets a head that is drawn at random.
    attention: implementation of attention, as `transformers` names it; None for its own choice.

    Raises InvalidInput for a classifier, whose decoder would be drawn at random, and for weights that do not fit.
    """
    folder = checkpoint_folder(model, revision)
    if kind := classifier_of(read_config(model, folder)):
        raise InvalidInput(f"{model} is a {kind}, not a masked LM: it cannot fill a mask")
    loaded = load_checked(AutoModelForMaskedLM, model, folder, new_head=new_head, attn_implementation=attention)
    if hasattr(loaded, "sparse_prediction"):
        # A base may be saved so that its head runs at labels only: whoever loads this one again gets the whole head.
        loaded.sparse_prediction = loaded.config.sparse_prediction = False
    return loaded


def classifier_of(config: PreTrainedConfig) -> str | None:
    """Return the class of a checkpoint that was saved as a classifier; None for any other."""
    return next((name for name in config.architectures or [] if name.endswith(("Classification", "ForSets"))), None)


def read_config(model: str, folder: Path) -> PreTrainedConfig:
    """Return the configuration of a checkpoint. Raises InvalidInput."""
    if (folder / ADAPTER_CONFIG).is_file():
        # `transformers` would load an adapter by itself, but resets a DoRA's magnitudes.
        raise InvalidInput(f"{model} is an adapter, not a model: name its base as the model, and this as its adapter")
    with input_errors(f"{model} cannot be loaded"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder)
    return config


def load_checked(
    kind: Any,
    model: str,
    folder: Path,
    *,
    new_head: bool = False,
    masked_lm: Collection[str] = (),
    **options: Any,
) -> PreTrainedModel:
    """Load every weight of a checkpoint, in fp32. What `transformers` only logs is refused.

    kind: class of `transformers` that opens it.
    model: the name of the checkpoint for messages and for what is saved; `folder` is where it is.
    new_head: whether all but the body may be missing, and is drawn at random.
    masked_lm: the weights of the masked LM that a classifier starts from; what only one of both has is new or left out.

    Raises InvalidInput, which names the weights that are missing, belong to nothing, or have another shape.
    """
    tensors = tensor_names(weight_files(folder))
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of the weights is the text of the error below
    try:
        with input_errors(f"{model} cannot be loaded"):
            loaded, report = kind.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    finally:
        logging.set_verbosity(before)
    body = f"{loaded.base_model_prefix}."
    missing = sorted(
        key
        for key in report["missing_keys"]
        if not (new_head and not key.startswith(body)) and not (masked_lm and key not in masked_lm)
    )
    unknown = sorted(key for key in report["unexpected_keys"] if not UNREAD.search(key) and key not in masked_lm)
    other = sorted(f"{key} {list(here)} instead of {list(ours)}" for key, here, ours in report["mismatched_keys"])
    faults = [
        f"{len(keys)} {what}: {listed(keys)}"
        for keys, what in (
            (missing, "of its weights are missing"),
            (unknown, "belong to nothing"),
            (other, "have another shape"),
            (named_twice(tensors, body), "are there under two names"),
            (sorted(map(str, report["error_msgs"])), "could not be read"),
            (untied(loaded), "differ from the embedding that the configuration ties them to"),
        )
        if keys
    ]
    if faults:
        hint = "".join(text for prefix, text in PREFIXES.items() if any(key.startswith(prefix) for key in unknown))
        if missing and not unknown and not any(key.startswith(body) for key in missing):
            hint = "; a body without its head can only be trained, by a recipe with new_head: true"
        raise InvalidInput(f"{model} does not fit a {type(loaded).__name__}: {'; '.join(faults)}{hint}")
    loaded.name_or_path = loaded.config.name_or_path = model
    result: PreTrainedModel = loaded
    return result


def tensor_names(files: Iterable[Path]) -> list[str]:
    """Return the names of the tensors in files of weights, which are not read."""
    names: list[str] = []
    for file in files:
        with input_errors(f"{file} is damaged"):
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as tensors:
                    names += tensors.keys()
            else:
                names += torch.load(file, map_location="meta", weights_only=True)
    return names


def named_twice(names: Iterable[str], prefix: str) -> list[str]:
    """Return the tensors that several names stand for: `transformers` takes them with or without the body's prefix."""
    seen = Counter(re.sub(rf"^({re.escape(prefix)})+", "", name) for name in names)
    return sorted(name for name, times in seen.items() if times > 1)


def untied(model: PreTrainedModel) -> list[str]:
    """Return the decoder's weight if it should be the embedding and is not; libraries differ in which they use."""
    decoder = model.get_output_embeddings()
    is_free = decoder is None or not getattr(model.config, "tie_word_embeddings", False)
    return [] if is_free or decoder.weight is model.get_input_embeddings().weight else ["the decoder's weights"]


def load_tokenizer(model: str, revision: str | None = None) -> tuple[Tokenizer, SpecialTokens]:
    """Load the fast tokenizer of a folder or a hub id, and the ids of its special tokens.

    Raises InvalidInput, InvalidTemplate.
    """
    folder = checkpoint_folder(model, revision)
    with input_errors(f"the tokenizer of {model} cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.is_fast:
        raise InvalidInput(f"{model} has a {type(tokenizer).__name__}, which has no fast form")
    backend: Tokenizer = tokenizer.backend_tokenizer
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in ("cls", "sep", "mask", "pad")}
    if lacking := [role.upper() for role, i in ids.items() if i is None]:
        raise InvalidTemplate(f"the tokenizer of {model} lacks its {' and '.join(lacking)} token")
    return backend, SpecialTokens(**ids)


def refuse_misfit(tokenizer: Tokenizer, max_tokens: int, config: PreTrainedConfig) -> None:
    """Raise InvalidInput if a model has no embedding for some tokens of a tokenizer, or no position for some tokens."""
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= config.vocab_size:
        raise InvalidInput(
            f"the tokenizer has ids up to {largest}, but the model's embedding has {config.vocab_size} rows; use the "
            "model's own tokenizer"
        )
    positions = positions_of(config)
    if positions is not None and max_tokens > positions:
        raise InvalidInput(
            f"max_tokens={max_tokens} exceeds the model, which has {positions} positions; set a smaller one"
        )


def positions_of(config: PreTrainedConfig) -> int | None:
    """Return how many tokens a model has positions for; None if its positions are relative and have no end."""
    if getattr(config, "relative_attention", False) and not config.position_biased_input:
        return None
    # The RoBERTa family numbers positions from behind its padding id.
    reserved = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    return int(config.max_position_embeddings - reserved)


def read_geometry(config: PreTrainedConfig, read_at: ReadAt = "mask") -> Geometry:
    """Return the sizes of a model. One without layer types has global layers only and an MLP without a gate."""
    layers = config.num_hidden_layers
    embedding = getattr(config, "embedding_size", config.hidden_size)
    kinds = getattr(config, "layer_types", None)
    return Geometry(
        layers=layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        window=config.local_attention if kinds else 2 * config.max_position_embeddings,
        global_layers=tuple(i for i in range(layers) if not kinds or kinds[i] == "full_attention"),
        vocab=config.vocab_size,
        gated=kinds is not None,
        distances=count_distances(config),
        embedding=0 if embedding == config.hidden_size else embedding,
        reads_mean=read_at == "mean",
    )


def count_distances(config: PreTrainedConfig) -> int:
    """Return the embeddings of distances that DeBERTa's attention uses; 0 for other models."""
    if not getattr(config, "relative_attention", False):
        return 0
    buckets, largest = getattr(config, "position_buckets", -1), getattr(config, "max_relative_positions", -1)
    return 2 * (buckets if buckets > 0 else largest if largest > 0 else config.max_position_embeddings)
