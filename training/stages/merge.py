"""Trained specialists, opened with their adapters folded in, merged, and written as one checkpoint for export."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from tinyrm.bundle import sha256, weights_sha256
from tinyrm.errors import InvalidInput
from tinyrm.modernbert.adapter import load_with_adapter, merge
from tinyrm.modernbert.checkpoint import load_tokenizer
from tinyrm.spec import HELD_OUT_FILE, SPEC_FILE, ClozeSpec, read_run
from training.model import merging
from training.model.merging import State
from training.output import write_run
from training.recipe import MergeRecipe, Specialist

ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A specialist's folder, read where it is asked."""

    specialist: Specialist

    @property
    def folder(self) -> Path:
        return Path(self.specialist.path)

    @cached_property
    def base(self) -> str | None:
        """Of an adapter; None for full weights. Raises InvalidInput if it was trained on other weights."""
        config = self.folder / ADAPTER_FILE
        if not config.is_file():
            return None
        named = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
        base = self.specialist.base or named
        if not base:
            raise InvalidInput(f"{self.folder} does not name the base of its adapter; give it as `base`")
        trained_on, present = self.run.get("base_sha256"), weights_sha256(base)
        if trained_on and present and present != trained_on:
            raise InvalidInput(f"{self.folder} was trained on other weights than those of {base}; name its own base")
        return str(base)

    @cached_property
    def run(self) -> dict[str, Any]:
        """The record of its training, empty if there is none."""
        return read_run(self.folder)

    @cached_property
    def spec(self) -> ClozeSpec:
        if not (self.folder / SPEC_FILE).is_file():
            raise InvalidInput(f"{self.folder} has no {SPEC_FILE}: it was not trained as a reward model")
        return ClozeSpec.load(self.folder)

    @property
    def tokenizer(self) -> str:
        """Where its tokenizer is: with what was trained last, else with the base."""
        return str(self.folder) if (self.folder / "tokenizer.json").is_file() else self.base or self.specialist.path

    def model(self) -> PreTrainedModel:
        """The masked LM, its adapter folded in, on the CPU in fp32."""
        if self.base is None:
            return load_with_adapter(self.specialist.path, None)
        return merge(load_with_adapter(self.base, self.folder))

    def sha256(self) -> str | None:
        """Of the weights, or of the adapter; None for a hub id."""
        adapter = self.folder / ADAPTER_WEIGHTS
        return sha256(adapter) if adapter.is_file() else weights_sha256(self.specialist.path)


def merge_specialists(recipe: MergeRecipe) -> None:
    """Merge and write weights, tokenizer, the specs' union, all held-out pairs and a record.

    Raises InvalidInput if the models differ in shape, vocabulary or template.
    """
    opened = [Opened(s) for s in recipe.specialists]
    spec = union([o.spec for o in opened], recipe.default_domain)
    _refuse_other_tokenizers([o.tokenizer for o in opened] + ([recipe.base] if recipe.base else []))
    first = opened[0].model()
    states = [state_of(first), *(state_of(o.model()) for o in opened[1:])]
    base = state_of(load_with_adapter(recipe.base, None)) if recipe.base else None
    _refuse_other_shapes([s.path for s in recipe.specialists], states, recipe.base, base)
    fill(first, merged_state(recipe, base, states))
    recipe.output_dir.mkdir(parents=True, exist_ok=True)
    first.save_pretrained(recipe.output_dir)
    AutoTokenizer.from_pretrained(opened[0].tokenizer).save_pretrained(recipe.output_dir)
    spec.save(recipe.output_dir)
    _record(recipe, opened)


def merged_state(recipe: MergeRecipe, base: State | None, states: Sequence[State]) -> State:
    coefficients, density, scale = recipe.coefficients(), recipe.density, recipe.scale
    if base is None:
        return merging.mean(states, coefficients)
    if recipe.method == "task_arithmetic":
        return merging.task_arithmetic(base, states, coefficients, scale)
    if recipe.method == "ties":
        return merging.ties(base, states, coefficients, density=density, scale=scale)
    return merging.dare(base, states, coefficients, density=density, seed=recipe.seed, scale=scale)


def state_of(model: PreTrainedModel) -> State:
    """Every parameter once: what is tied goes by the name of its first use, the embedding, and not by the decoder's."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def fill(model: PreTrainedModel, state: State) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[name])


def union(specs: Sequence[ClozeSpec], default_domain: str | None) -> ClozeSpec:
    """The domains of all; the smallest budget that all were trained for. Raises InvalidInput where they disagree."""
    if len({spec.template.model_dump_json() for spec in specs}) > 1:
        raise InvalidInput(f"the specialists have other templates: {', '.join(s.template.name for s in specs)}")
    domains: dict[str, str] = {}
    for spec in specs:
        for domain, instruction in spec.domains.items():
            if domains.setdefault(domain, instruction) != instruction:
                raise InvalidInput(f"domain {domain!r} has two instructions: {domains[domain]!r} and {instruction!r}")
    default = default_domain or specs[0].default_domain
    if default not in domains:
        raise InvalidInput(f"default_domain {default!r} is not among the specialists' domains: {', '.join(domains)}")
    budget = min(spec.max_tokens for spec in specs)
    return ClozeSpec(template=specs[0].template, max_tokens=budget, domains=domains, default_domain=default)


def _refuse_other_tokenizers(folders: Sequence[str]) -> None:
    """The vocabularies have to be equal id by id: a row of the embedding is one token in all of them."""
    first, ids = load_tokenizer(folders[0])
    for folder in folders[1:]:
        other, other_ids = load_tokenizer(folder)
        if other.get_vocab() != first.get_vocab() or other_ids != ids:
            raise InvalidInput(f"{folder} has another tokenizer than {folders[0]}; only models of one vocabulary merge")


def _refuse_other_shapes(
    paths: Sequence[str], states: Sequence[State], base_path: str | None, base: State | None
) -> None:
    named = list(zip(paths, states, strict=True)) + ([(base_path, base)] if base_path and base else [])
    first_path, first = named[0]
    for path, state in named[1:]:
        if lacking := sorted(first.keys() ^ state.keys()):
            raise InvalidInput(f"{path} and {first_path} differ in shape: only one of them has {lacking[0]}")
        for name, value in first.items():
            if value.shape != state[name].shape:
                shapes = f"{list(state[name].shape)} and {list(value.shape)}"
                raise InvalidInput(f"{path} and {first_path} differ in shape: {name} is {shapes}")


def _record(recipe: MergeRecipe, opened: Sequence[Opened]) -> None:
    """What export and the model card need to know: the recipe, its inputs' hashes, and how each of them was made."""
    run = {
        "recipe": recipe.model_dump(mode="json", exclude={"output_dir"}),
        "coefficients": recipe.coefficients(),
        "base_sha256": weights_sha256(recipe.base) if recipe.base else None,
        "specialists_sha256": {o.specialist.path: o.sha256() for o in opened},
        "data_sha256": {path: digest for o in opened for path, digest in o.run.get("data_sha256", {}).items()},
        "specialists": {o.specialist.path: o.run or None for o in opened},
    }
    write_run(recipe.output_dir, run)
    _write_held_out(recipe.output_dir / HELD_OUT_FILE, opened)


def _write_held_out(path: Path, opened: Sequence[Opened]) -> None:
    """All specialists' held-out pairs, where one split made them: else one may have learned what another held out."""
    path.unlink(missing_ok=True)
    files = [o.folder / HELD_OUT_FILE for o in opened]
    splits = {_split(o.run.get("recipe", {})) for o in opened}
    if len(splits) > 1 or None in splits or not all(file.is_file() for file in files):
        log.warning("the specialists did not hold out pairs by one seed and share: name calibration pairs at export")
        return
    lines = dict.fromkeys(line for file in files for line in file.read_text(encoding="utf-8").splitlines())
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _split(recipe: dict[str, Any]) -> tuple[int, float] | None:
    """What `training.data.collate.split_by_prompt` went by; None for a model that was not trained by a recipe."""
    optimization = recipe.get("optimization")
    return (optimization["seed"], recipe["held_out_fraction"]) if optimization else None
