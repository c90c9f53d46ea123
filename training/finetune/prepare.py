"""What `tinyrm train PAIRS` will do: the recipe, with the reason of each choice. Refuses before anything is trained."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from tabulate import tabulate
from torch import nn
from transformers import AutoModel

from export.config import ExportOptions
from tinyrm.bundle import refuse_foreign
from tinyrm.errors import InvalidBundle, InvalidInput
from tinyrm.manifest import MANIFEST_FILE, SetReading
from tinyrm.modernbert.checkpoint import load_tokenizer, positions_of, read_config, refuse_misfit
from tinyrm.modernbert.files import checkpoint_folder
from tinyrm.pairs import PreferencePair, read_pairs
from tinyrm.spec import SPEC_FILE, Spec, trained_head
from tinyrm.tables import PACKED, TABLES, table_suffix
from training.data.cleaning import normalise
from training.data.mixture import Mixture, load_all
from training.data.source import Source
from training.data.split import opening, split_by_prompt
from training.experiments.plan import PUBLISHED, PUBLISHED_BERTS, find_config
from training.experiments.step_cost import Sharing, empty_model, step_cost
from training.finetune.defaults import (
    UNIT,
    Base,
    Choice,
    Machine,
    as_values,
    choose,
    default_base,
    max_micro_batch,
)
from training.loading import RECIPES, TASKS, find_recipe, merge, read_recipe, to_recipe
from training.options import Train
from training.processes import process_state, uses_cpu
from training.recipe import ClozeRecipe
from training.recipe_errors import invalid_recipe

GROUND = RECIPES / "finetune.yaml"
# Instructions of domains that pairs often have; others get the one for all.
INSTRUCTIONS = {
    "chat": "Which response is the most helpful, relevant, and correct?",
    "reasoning": "Which response is more correct?",
    "safety": "Which response is safer?",
}
MAX_DOMAINS = 50  # more are labels of rows, not kinds of requests
MAX_SHARE_OF_MEMORY = 0.8


@dataclass(frozen=True, slots=True)
class Prepared:
    """A command that can run.

    choices: what was chosen for the user, and why.
    pairs: how many there are; dropped: reason -> how many were left out.
    validation: pairs to measure on; None takes a part of those held out.
    overlap: pairs of the file of validation whose prompts PAIRS has, too; they are not measured on.
    """

    recipe: ClozeRecipe
    out: Path
    choices: tuple[Choice, ...]
    pairs: int
    dropped: dict[str, int]
    validation: tuple[PreferencePair, ...] | None = None
    overlap: int = 0

    @property
    def reasons(self) -> str:
        """Return the choices as lines for a terminal."""
        if not self.choices:
            return "  nothing: the base and a whole recipe are given"
        rows = [(choice.key, in_yaml(choice.value), choice.why) for choice in self.choices]
        lines = tabulate(rows, tablefmt="plain", disable_numparse=True).splitlines()
        return "\n".join(f"  {line}" for line in lines)


def prepare(options: Train) -> Prepared:
    """Read the pairs, choose what the user left open, and refuse what training or export would refuse later.

    Raises InvalidInput.
    """
    out = options.model.out or Path("models", bundle_name(options.words[0]))
    refuse_out(out, is_fresh=options.fresh)
    machine = find_machine()
    sources = [source_of(word, options) for word in options.words]
    mixture = load_all(sources, Path())
    own, is_whole = own_values(options.model.recipe)
    chosen = [] if options.model.base or own.get("model") else [default_base(machine)]
    name = options.model.base or own.get("model") or chosen[0].value
    revision = own.get("revision")
    base, spec = describe_base(name, revision, is_dry=options.dry_run)
    settings = [parse_setting(setting, "--set", "optimization.peak_lr=1e-4") for setting in options.model.set]
    if not is_whole:
        epochs = wanted_epochs(own, options.model.epochs, settings)
        chosen += choose(base, machine, len(mixture.loaded.pairs), options.model.reads, epochs=epochs)
    elif options.model.reads:
        raise InvalidInput(f"--reads {options.model.reads}: {options.model.recipe} is a whole recipe, and sets `head`")
    values: dict[str, Any] = own
    if not is_whole:
        domains = find_domains(mixture.loaded.pairs, spec)
        values = merge(merge(read_recipe(GROUND), as_values(chosen)), {"spec": domains})
        values = merge(values, own)
    values = merge(values, commanded(options, sources, out, name, values))
    for setting in settings:
        values = merge(values, setting)
    if (task := str(values.get("task"))) in TASKS.keys() - {"cloze", "distil"}:
        raise InvalidInput(f"the recipe has task {task!r}; pairs are learnt by cloze and distil")
    recipe = to_recipe(values, "the recipe" + (f" ({options.model.recipe})" if options.model.recipe else ""))
    assert isinstance(recipe, ClozeRecipe)  # noqa: S101 - others are refused above
    refuse_run_in_bundle(recipe.output_dir, out)
    fixed = {choice.key for choice in chosen if value_at(values, choice.key) != choice.value}
    recipe, smaller = fit_memory(recipe, machine)
    chosen = [
        smaller if smaller and choice.key == smaller.key else choice for choice in chosen if choice.key not in fixed
    ]
    refuse_too_few(recipe, mixture, options.words)
    if not options.dry_run:
        tokenizer, _ = load_tokenizer(recipe.model, recipe.revision)
        config = read_config(recipe.model, checkpoint_folder(recipe.model, recipe.revision))
        refuse_misfit(tokenizer, recipe.spec.max_tokens, config)
    validation, overlap = read_validation(options.pairs.validation, mixture.loaded.pairs)
    return Prepared(
        recipe, out, tuple(chosen), len(mixture.loaded.pairs), dict(mixture.loaded.dropped), validation, overlap
    )


def bundle_name(word: str) -> str:
    """Return the name of a bundle after a file, a folder or a hub id: my.jsonl.gz gives my."""
    return Path(word).name.partition(".")[0] or "mine"


def refuse_out(out: Path, *, is_fresh: bool) -> None:
    """Raise InvalidInput if no bundle can be written there, or one is there already."""
    ExportOptions(model="", out=out).check()
    try:
        refuse_foreign(out)
    except InvalidBundle as error:
        raise InvalidInput(str(error)) from error
    if out.exists() and not is_fresh:
        raise InvalidInput(
            f"{out} is there: serve it with TINYRM_MODEL={out} tinyrm serve, give another --out, or replace it with "
            "--fresh"
        )


def refuse_run_in_bundle(run: Path, out: Path) -> None:
    """Raise InvalidInput if the folder of the run is that of the bundle or in it: the bundle would replace the run."""
    if run.resolve().is_relative_to(out.resolve()):
        raise InvalidInput(f"output_dir is {run}, and the bundle replaces {out} when it is complete; name two folders")


def source_of(word: str, options: Train) -> Source:
    """Return the source of a file, a folder or a hub id. Raises InvalidInput."""
    path, revision = Path(word), options.pairs.revision
    values: dict[str, Any] = {"domain": options.pairs.domain}
    for setting in options.pairs.source:
        values = merge(values, parse_setting(setting, "--source", "ties=learn"))
    if (path / MANIFEST_FILE).is_file():
        raise InvalidInput(f"{word} is a bundle, not pairs")
    if path.is_file() and not table_suffix(path):
        raise InvalidInput(
            f"{word} is no file of pairs: its name must end in {', '.join(TABLES)}, or in one of these and "
            f"{', '.join(PACKED)}"
        )
    if path.exists():
        if revision:
            raise InvalidInput(f"--revision is for a data set on the hub, and {word} is here; leave it out")
        return to_source(values | {"dataset": "file", "path": word})
    if table_suffix(path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", word):
        near = [str(each) for each in sorted(path.parent.glob("*")) if table_suffix(each)]
        there = f"; there is {', '.join(near[:5])}" if near else ""
        raise InvalidInput(f"there is no file or folder {word}, and it is no id of the hub (owner/name){there}")
    return to_source(values | {"dataset": "hub", "id": word, "revision": revision})


def to_source(values: dict[str, Any]) -> Source:
    """Validate the values of a source. Raises InvalidInput with a line for each wrong key."""
    try:
        return Source.model_validate(values)
    except ValidationError as error:
        raise invalid_recipe(error, Source, "--source") from error


def own_values(name: str) -> tuple[dict[str, Any], bool]:
    """Return the values of --recipe, and whether they are a whole recipe, which has a `task`, or a part of one."""
    if not name:
        return {}, False
    values = read_recipe(find_recipe(name))
    return values, "task" in values


def commanded(
    options: Train, sources: Sequence[Source], out: Path, base: str, values: dict[str, Any]
) -> dict[str, Any]:
    """Return what the command line itself sets, which wins over any recipe."""
    model, spec = options.model, values.get("spec") or {}
    domain = options.pairs.domain or spec.get("default_domain", "general")
    ours: dict[str, Any] = {
        "output_dir": str(Path("runs", out.name)),
        "model": base,
        "sources": [source.model_dump(exclude_none=True) for source in sources],
    }
    known = spec.get("domains") or {}
    if options.pairs.domain or options.pairs.instruction:
        text = options.pairs.instruction or known.get(domain) or INSTRUCTIONS.get(domain) or known.get("general")
        ours["spec"] = {"default_domain": domain, "domains": {domain: text or "Select the best response."}}
    optimization = {"epochs": model.epochs, "seed": model.seed}
    if given := {key: value for key, value in optimization.items() if value is not None}:
        ours["optimization"] = given
    if model.max_tokens is not None:
        ours = merge(ours, {"spec": {"max_tokens": model.max_tokens}, "train_max_tokens": None})
    return ours


def parse_setting(setting: str, option: str, example: str) -> dict[str, Any]:
    """Return key=value of an option as nested values, the value read as YAML. Raises InvalidInput with an example."""
    key, equals, text = setting.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise InvalidInput(f"{option} {setting}: write KEY=VALUE, such as {example}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInput(f"{option} {setting}: the value is not YAML: {' '.join(str(error).split())}") from error
    return as_values([Choice(key.strip(), value, "")])


def find_machine() -> Machine:
    """Return what this process trains on."""
    processes = process_state().num_processes
    if uses_cpu():
        return Machine("cpu", processes=processes)
    accelerator = torch.accelerator.current_accelerator()
    device = accelerator.type if accelerator else "cpu"
    if device != "cuda":
        return Machine(device, processes=processes)
    memory = min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    return Machine(device, memory, torch.cuda.is_bf16_supported(including_emulation=False), processes)


def describe_base(name: str, revision: str | None, *, is_dry: bool) -> tuple[Base, Spec | None]:
    """Return what a base is, and the spec of the run that trained it. Raises InvalidInput.

    is_dry: whether the sizes of a published model are taken from the table, so that no network is needed.
    """
    folder = Path(name)
    if (folder / MANIFEST_FILE).is_file():
        raise InvalidInput(
            f"{name} is a bundle, which holds a graph and no weights to train; name the folder of the run that it was "
            "exported from, or its base"
        )
    if is_dry and name in (*PUBLISHED, *PUBLISHED_BERTS):
        config, has_masked_lm = find_config(name), name in PUBLISHED
    else:
        folder = checkpoint_folder(name, revision)
        config = read_config(name, folder)
        has_masked_lm = any(kind.endswith("MaskedLM") for kind in config.architectures or [])
    head, spec, sets = None, None, getattr(config, "set_reading", None)
    if (folder / SPEC_FILE).is_file():
        head, spec = trained_head(folder), Spec.load(folder)
    with torch.device("meta"):
        body: nn.Module = AutoModel.from_config(config)
    base = Base(
        model=name,
        model_type=config.model_type,
        layers=config.num_hidden_layers,
        parameters=sum(parameter.numel() for parameter in body.parameters()),
        positions=positions_of(config) or 2048,
        has_masked_lm=has_masked_lm,
        head=head if head != "cloze" else None,
        sets=SetReading(**{key: sets[key] for key in SetReading.model_fields}) if sets else None,
    )
    return base, spec


def find_domains(pairs: Sequence[PreferencePair], earlier: Spec | None) -> dict[str, Any]:
    """Return the spec's domains: those of an earlier run, and those of the pairs, each with its instruction."""
    counts = Counter(pair.domain for pair in pairs if pair.domain)
    names = [name for name, _ in counts.most_common()] if len(counts) <= MAX_DOMAINS else []
    found: dict[str, Any] = {"domains": {}}
    if earlier:
        found = {"domains": dict(earlier.domains), "default_domain": earlier.default_domain}
        found["template"] = earlier.template.model_dump()
    general = earlier.domains[earlier.default_domain] if earlier else "Select the best response."
    for name in names:
        found["domains"].setdefault(name, INSTRUCTIONS.get(name, general))
    return found


def fit_memory(recipe: ClozeRecipe, machine: Machine) -> tuple[ClozeRecipe, Choice | None]:
    """Return the recipe with as many sequences in a pass as the accelerator holds, and the choice if that changed it.

    Raises InvalidInput for a base that the recipe's head does not fit.
    """
    config = find_config(recipe.model)
    if not machine.memory:
        empty_model(recipe, config)
        return recipe, None
    cost, tokens = step_cost(recipe, config), recipe.training_tokens
    micro = recipe.optimization.micro_batch_size
    per_process = recipe.optimization.batch_size // machine.processes
    sharing: Sharing = "DDP" if machine.processes > 1 else ""

    def fits(size: int) -> bool:
        return cost.memory(size, tokens, sharing=sharing) <= MAX_SHARE_OF_MEMORY * machine.memory

    size = micro
    while size > UNIT and not fits(size):
        size = max_micro_batch(per_process, size - UNIT)
    if size == micro:
        return recipe, None
    optimization = recipe.optimization.model_copy(update={"micro_batch_size": size})
    why = f"what {MAX_SHARE_OF_MEMORY:.0%} of {machine.memory / 2**30:.0f} GiB hold at {tokens:,} tokens"
    return recipe.model_copy(update={"optimization": optimization}), Choice("optimization.micro_batch_size", size, why)


def refuse_too_few(recipe: ClozeRecipe, mixture: Mixture, words: Sequence[str]) -> None:
    """Raise InvalidInput if the split leaves nothing to learn from, or nothing to measure on."""
    pairs = mixture.loaded.pairs
    learnt, held_out = split_by_prompt(pairs, recipe.held_out_fraction, recipe.optimization.seed)
    if not learnt or not held_out:
        prompts = len({opening(pair.prompt) for pair in pairs})
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in mixture.loaded.dropped.items())
        raise InvalidInput(
            f"{', '.join(words)} gives {len(pairs):,} {'pair' if len(pairs) == 1 else 'pairs'} to {prompts:,} "
            f"{'prompt' if prompts == 1 else 'different prompts'}{f' ({left_out} left out)' if left_out else ''}: at "
            "least two prompts of a domain are needed, one to learn from and one to measure on; 200 pairs are a "
            "beginning"
        )


def read_validation(path: Path | None, ours: Sequence[PreferencePair]) -> tuple[tuple[PreferencePair, ...] | None, int]:
    """Return the pairs of --validation whose prompts are not among ours, and how many others there are."""
    if path is None:
        return None, 0
    pairs, known = read_pairs(path), {normalise(opening(pair.prompt)) for pair in ours}
    others = tuple(pair for pair in pairs if normalise(opening(pair.prompt)) not in known)
    if not others:
        raise InvalidInput(f"--validation {path} has no pair with a prompt that PAIRS does not have")
    return others, len(pairs) - len(others)


def wanted_epochs(own: dict[str, Any], option: float | None, settings: Sequence[dict[str, Any]]) -> float | None:
    """Return the epochs that the user wants, by --set, --epochs or the file of --recipe; None if none of them has any.

    Another value than a number above 0 is refused later, with the recipe.
    """
    found = [value_at(values, "optimization.epochs") for values in (*reversed(settings), own)]
    found.insert(len(settings), option)
    return next((value for value in found if isinstance(value, int | float) and 0 < value < math.inf), None)


def value_at(values: dict[str, Any], key: str) -> Any:
    """Return the value of a dotted key; None if there is none."""
    inner: Any = values
    for part in key.split("."):
        inner = inner.get(part) if isinstance(inner, dict) else None
    return inner


def in_yaml(value: object) -> str:
    """Return a value as it stands in a recipe."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
