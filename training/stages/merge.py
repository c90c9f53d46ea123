"""Merging: trained specialists become one checkpoint for export, in weight space."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel

from tinyrm.errors import InvalidInput
from tinyrm.files import write_atomically
from tinyrm.modernbert.adapter import load_with_adapter
from tinyrm.modernbert.checkpoint import load_tokenizer
from tinyrm.modernbert.files import weights_sha256
from tinyrm.spec import HELD_OUT_FILE, Spec
from tinyrm.truncation import KeptOfResponse
from training.model import merging
from training.model.merging import State
from training.model.specialists import TrainedModel
from training.output import RECIPE_FILE, refuse_inputs, refuse_weights, write_run
from training.recipe import MergeRecipe

log = logging.getLogger(__name__)


def merge_specialists(recipe: MergeRecipe, *, fresh: bool = False) -> None:
    """Merge and write weights, tokenizer, the union of the specs, all held-out pairs and a record.

    fresh: replace whatever model the output folder holds, and not only an earlier merge.

    Raises InvalidInput if the models differ in shape, vocabulary or template, or if the folder holds another model.
    """
    inputs = [path for each in recipe.specialists for path in (each.path, each.base) if path]
    refuse_inputs(recipe.output_dir, inputs + ([recipe.base] if recipe.base else []))
    if not fresh:
        refuse_weights(recipe.output_dir, recipe.task)
    specialists = [TrainedModel(each) for each in recipe.specialists]
    if other := next((each for each in specialists if each.head != "cloze"), None):
        raise InvalidInput(f"{other.path} was trained with head: {other.head}; only cloze models are merged")
    spec = unite_specs([each.spec for each in specialists], recipe.default_domain)
    refuse_other_tokenizers([each.tokenizer for each in specialists] + ([recipe.base] if recipe.base else []))
    model = specialists[0].load()
    states = {each.path: state_of(model if i == 0 else each.load()) for i, each in enumerate(specialists)}
    base = state_of(load_with_adapter(recipe.base, None)) if recipe.base else None
    refuse_other_shapes(states | ({str(recipe.base): base} if base else {}))
    merged = merge_states(recipe, base, list(states.values()))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(merged[name])
    recipe.output_dir.mkdir(parents=True, exist_ok=True)
    fields = recipe.model_dump(mode="json", exclude={"output_dir"})
    write_atomically(recipe.output_dir / RECIPE_FILE, json.dumps({"recipe": fields}, indent=2) + "\n")
    model.save_pretrained(recipe.output_dir)
    AutoTokenizer.from_pretrained(specialists[0].tokenizer).save_pretrained(recipe.output_dir)
    spec.save(recipe.output_dir)
    # What export and the model card need: the recipe, the hashes of its inputs, and how each of them was made.
    run = {
        "recipe": fields,
        "coefficients": recipe.coefficients(),
        "base_sha256": weights_sha256(recipe.base) if recipe.base else None,
        "specialists_sha256": {each.path: each.sha256() for each in specialists},
        "data_sha256": {path: digest for s in specialists for path, digest in s.run.get("data_sha256", {}).items()},
        "data_revisions": {name: c for s in specialists for name, c in s.run.get("data_revisions", {}).items()},
        "specialists": {each.path: each.run or None for each in specialists},
    }
    write_run(recipe.output_dir, run)
    write_held_out(recipe.output_dir / HELD_OUT_FILE, specialists)


def merge_states(recipe: MergeRecipe, base: State | None, states: Sequence[State]) -> State:
    coefficients, density, scale = recipe.coefficients(), recipe.density, recipe.scale
    if base is None:
        return merging.mean(states, coefficients)
    if recipe.method == "task_arithmetic":
        return merging.task_arithmetic(base, states, coefficients, scale)
    if recipe.method == "ties":
        return merging.ties(base, states, coefficients, density=density, scale=scale)
    return merging.dare(base, states, coefficients, density=density, seed=recipe.seed, scale=scale)


def state_of(model: PreTrainedModel) -> State:
    """Return every parameter once: a tied one has the name of its first use, the embedding, not the decoder's."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def unite_specs(specs: Sequence[Spec], default_domain: str | None) -> Spec:
    """Return all domains with the smallest token budget. Raises InvalidInput where the specs contradict each other."""
    if len({spec.template.model_dump_json() for spec in specs}) > 1:
        raise InvalidInput(f"the specialists have different templates: {', '.join(s.template.name for s in specs)}")
    domains: dict[str, str] = {}
    truncation: dict[str, KeptOfResponse] = {}
    for spec in specs:
        for domain, instruction in spec.domains.items():
            if domains.setdefault(domain, instruction) != instruction:
                raise InvalidInput(f"domain {domain!r} has two instructions: {domains[domain]!r} and {instruction!r}")
            if truncation.setdefault(domain, spec.kept(domain)) != spec.kept(domain):
                raise InvalidInput(
                    f"domain {domain!r} has two truncations: {truncation[domain]} and {spec.kept(domain)}"
                )
    default = default_domain or specs[0].default_domain
    if default not in domains:
        raise InvalidInput(f"default_domain {default!r} is not among the specialists' domains: {', '.join(domains)}")
    budget = min(spec.max_tokens for spec in specs)
    return Spec(
        template=specs[0].template,
        max_tokens=budget,
        domains=domains,
        default_domain=default,
        truncation=truncation if "ends" in truncation.values() else "start",
    )


def refuse_other_tokenizers(folders: Sequence[str]) -> None:
    """The vocabularies must be equal id by id: a row of the embedding is the same token in all models."""
    first, ids = load_tokenizer(folders[0])
    for folder in folders[1:]:
        other, other_ids = load_tokenizer(folder)
        if other.get_vocab() != first.get_vocab() or other_ids != ids:
            raise InvalidInput(f"{folder} has another tokenizer than {folders[0]}; only models of one vocabulary merge")


def refuse_other_shapes(states: dict[str, State]) -> None:
    """states: path of a model -> its parameters; all are compared with the first."""
    (first_path, first), *others = states.items()
    for path, state in others:
        if lacking := sorted(first.keys() ^ state.keys()):
            raise InvalidInput(f"{path} and {first_path} differ in shape: only one of them has {lacking[0]}")
        for name, value in first.items():
            if value.shape != state[name].shape:
                shapes = f"{list(state[name].shape)} and {list(value.shape)}"
                raise InvalidInput(f"{path} and {first_path} differ in shape: {name} is {shapes}")


def write_held_out(path: Path, specialists: Sequence[TrainedModel]) -> None:
    """Write the held-out pairs of all specialists if one split made them.

    With different splits, one specialist may have learned from pairs that another one held out.
    """
    path.unlink(missing_ok=True)
    files = [each.folder / HELD_OUT_FILE for each in specialists]
    recipes = [each.run.get("recipe", {}) for each in specialists]
    # What `training.data.split.split_by_prompt` depends on.
    splits = {
        (recipe["optimization"]["seed"], recipe["held_out_fraction"]) for recipe in recipes if "optimization" in recipe
    }
    made_here = all("optimization" in recipe for recipe in recipes) and all(file.is_file() for file in files)
    if len(splits) != 1 or not made_here:
        log.warning("the specialists did not hold out pairs by one seed and share: name calibration pairs at export")
        return
    # Not splitlines(): a text may contain a line separator of Unicode, which JSON does not escape.
    lines = dict.fromkeys(line for file in files for line in file.read_text(encoding="utf-8").split("\n") if line)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
