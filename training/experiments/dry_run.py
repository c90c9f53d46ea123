"""The plan of a recipe as text: what it does and costs, where it fits, and how its other variants differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from tinyrm.spec import HeadKind
from training.experiments.hardware import (
    GIB,
    SHARE_OF_CPU_PEAK,
    SHARE_OF_GPU_PEAK,
    USABLE_SHARE,
    Fit,
    Hardware,
    chosen,
    duration,
    fits,
)
from training.experiments.plan import Plan, operations, plan
from training.experiments.scoring_cost import render_teachers
from training.loading import RECIPES, find_recipe, load_recipe, recipe_names
from training.recipe import AnyRecipe, ClozeRecipe, DistilRecipe

VARIANTS = ("paper", "author", "tinyrm")
# What a head reads, for those who do not know its name.
READS: dict[HeadKind, str] = {
    "cloze": "both responses of a pair, at the mask of a sentence",
    "pair-cls": "both responses of a pair, at the first token",
    "pair-mean": "both responses of a pair, in the mean of all tokens",
    "pointwise": "each response by itself",
    "set": "all responses to a prompt beside each other",
    "tokens": "each response by itself, at a marker",
}


def describe(
    recipe: ClozeRecipe,
    data_dir: Path,
    *,
    path: Path | None = None,
    hardware: tuple[str, ...] = (),
    price_per_hour: float | None = None,
) -> str:
    """Return what the recipe would do and cost.

    path: the recipe's file, if it has one.
    hardware: names of what to cost it on; all that is known if there are none.
    price_per_hour: dollars, of the one hardware that is named.

    Raises InvalidInput.
    """
    machines = chosen(hardware, price_per_hour)
    planned = plan(recipe, data_dir)
    text = render(planned, data_dir, path, machines)
    if isinstance(recipe, DistilRecipe):
        text += f"\n\n{render_teachers(planned, recipe)}"
    return text


def figures(
    recipe: ClozeRecipe, data_dir: Path, *, hardware: tuple[str, ...] = (), price_per_hour: float | None = None
) -> dict[str, Any]:
    """Return the numbers of the plan, for programs. Arguments and errors are those of `describe`."""
    machines = chosen(hardware, price_per_hour)
    planned = plan(recipe, data_dir)
    found = [
        fit
        for machine in machines
        for fit in fits(machine, recipe, planned.cost_on_cpu if machine.is_cpu else planned.cost, planned.work)
    ]
    return {
        "pairs": dict(zip((source.name for source in recipe.sources), planned.pairs, strict=True)),
        "steps": planned.steps or None,
        "parameters": planned.parts.parameters,
        "learning_parameters": planned.parts.learning,
        "mean_tokens": planned.lengths.mean,
        "training_flops": planned.work.training or None,
        "evaluation_flops": planned.work.evaluation or None,
        "hardware": [
            {
                "name": fit.hardware.title,
                "sharing": fit.sharing,
                "gib": fit.gib,
                "fits": bool(fit.fits),
                "micro_batch": fit.micro_batch,
                "hours": fit.hours,
                "dollars": fit.dollars,
            }
            for fit in found
        ],
    }


def render(plan: Plan, data_dir: Path, path: Path | None, machines: Sequence[Hardware]) -> str:
    """Return the plan as text, with what the other variants of a shipped recipe do differently."""
    sections = {
        "recipe": describe_recipe(plan.recipe, path),
        "data": describe_data(plan, data_dir),
        "steps": describe_steps(plan),
        "what learns": describe_learning(plan),
        "learning rate": [f"step {step:>6,}  {rate:.3e}" for step, rate in plan.rates().items()],
        "cost": describe_cost(plan),
        "where it fits": describe_hardware(plan, machines),
        "notes": [f"* {note}" for note in plan.recipe.notes],
    }
    for name in other_variants(path) if path else ():
        sections[f"{name} differs in"] = describe_other(plan.recipe, name)
    return "\n\n".join("\n  ".join([f"{title}:", *lines]) for title, lines in sections.items() if lines)


def other_variants(path: Path) -> list[str]:
    """Return the names of the recipes for the same row of the paper's table."""
    variant, row = path.resolve().parent, path.stem
    if variant.parent != RECIPES or variant.name not in VARIANTS:
        return []
    names = recipe_names()
    return [f"{other}/{row}" for other in VARIANTS if other != variant.name and f"{other}/{row}" in names]


def describe_recipe(recipe: ClozeRecipe, path: Path | None) -> list[str]:
    """Return a line for each thing that a recipe decides about what is read and learnt, as far as its head uses it."""
    return [
        *([f"file          {shown_path(path)}"] if path else []),
        f"model         {recipe.model}",
        f"writes        {recipe.output_dir}",
        f"head          {recipe.head}, {READS[recipe.head]}",
        *describe_cloze(recipe),
        f"max length    {describe_length(recipe)}",
        *describe_trainer(recipe),
        *(
            f"instruction   {domain}: {' | '.join(recipe.prefixes.get(domain, (instruction,)))}"
            for domain, instruction in recipe.spec.domains.items()
        ),
    ]


def describe_cloze(recipe: ClozeRecipe) -> list[str]:
    """Return the lines that matter only where the two responses of a pair have an order; some only for the cloze."""
    if recipe.head not in ("cloze", "pair-cls", "pair-mean"):
        return []
    orders = "both of every pair" if recipe.orders == "both" else "one, by a seeded coin"
    if recipe.orders == "coin" and recipe.coin_pairs > 1:
        orders += f" for each {recipe.coin_pairs:,} neighbours"
    template, order = f"template      {recipe.spec.template.name}", f"orders        {orders}"
    if recipe.head != "cloze":
        return [template, order]
    return [f"{template}, labels {recipe.spec.template.label_words}", order, f"loss          {recipe.loss}"]


def describe_length(recipe: ClozeRecipe) -> str:
    """Return what one sequence may hold in training, and in serving where that is more."""
    learnt, served = recipe.training_tokens, recipe.spec.max_tokens
    each = " for the prompt with each response" if recipe.head == "set" else ""
    return f"{learnt:,} tokens{each}" + (f" in training, {served:,} in serving" if served != learnt else "")


def shown_path(path: Path) -> Path:
    return path.relative_to(RECIPES.parents[1]) if path.is_relative_to(RECIPES) else path


def describe_trainer(recipe: ClozeRecipe) -> list[str]:
    """Return a line of what the recipe changes in the Trainer; none if that is nothing."""
    patience = {"early_stopping_patience": recipe.early_stopping_patience} if recipe.early_stopping_patience else {}
    changes = ", ".join(f"{name}: {value}" for name, value in {**recipe.trainer, **patience}.items())
    return [f"trainer       {changes}"] if changes else []


def describe_data(plan: Plan, data_dir: Path) -> list[str]:
    lines = []
    for source, given, count in zip(plan.recipe.sources, plan.sources, plan.pairs, strict=True):
        if given.is_read:
            pairs = f"{count:,} pairs"
        elif count is not None:
            pairs = f"{count:,} pairs, as published"
        elif source.path is not None:
            pairs = f"not known: {data_dir / source.path} does not exist yet"
        else:
            pairs = "not known before it is read from the hub"
        lines.append(f"{source.name:<24} {source.domain or '':<10} {pairs}")
    if plan.learned_pairs:
        counts = [f"{'' if domain == 'none' else domain} {n:,}".strip() for domain, n in plan.learned_pairs.items()]
        learn = ", ".join(counts)
        lines.append(f"to learn from, without {plan.recipe.held_out_fraction:.0%} held out: {learn}")
        if negatives := plan.recipe.negatives:
            made = negatives.beside(sum(plan.learned_pairs.values()))
            lines.append(f"made-up bad responses beside them: {made:,} pairs, {negatives.share:.0%} of all")
    return lines


def describe_steps(plan: Plan) -> list[str]:
    optimization = plan.recipe.optimization
    steps = f"{plan.steps:,} steps" if plan.steps else "as many steps as the data give"
    batch = f"{optimization.batch_size} sequences, {optimization.micro_batch_size} at a time"
    lines = [f"{steps} of {batch}, {optimization.precision}, seed {optimization.seed}"]
    if plan.rows:
        by_steps = optimization.max_steps * optimization.batch_size / plan.rows
        epochs = by_steps if optimization.max_steps > 0 else optimization.epochs
        passes = f"{epochs:.3g} {'epoch' if epochs == 1 else 'epochs'}"
        lines.append(f"{passes} of {plan.rows:,} sequences, {plan.recipe.rows_per_pair} of each pair")
        if not all(given.is_read for given in plan.sources):  # what a paper prints is counted so
            whole = plan.published_rows // optimization.batch_size
            lines.append(f"{whole:,} whole batches in an epoch of all published pairs, with none held out or dropped")
    if optimization.average:
        averaged = ", ".join(f"{step:,}" for step in optimization.average)
        lines.append(f"ends after step {max(optimization.average):,} with the mean of the weights after {averaged}")
    decay = f"weight decay {optimization.weight_decay:g} a step at the peak"
    lines.append(f"decoupled AdamW, betas {optimization.betas}, eps {optimization.eps:g}, {decay}")
    lines.append(f"which is torch's weight_decay {optimization.weight_decay / optimization.peak_lr:.3f}")
    return lines


def describe_learning(plan: Plan) -> list[str]:
    parts, dora, frozen, layers = plan.parts, plan.recipe.dora, plan.recipe.frozen_layers, plan.geometry.layers
    share = parts.learning / parts.parameters
    lines = [f"{parts.learning:,} of {parts.parameters:,} parameters ({share:.1%})"]
    if dora:
        kind = f"{'DoRA' if dora.magnitude else 'LoRA'} of rank {dora.rank}, alpha {dora.alpha}"
        lines.append(f"{kind} (scale {dora.alpha / dora.rank:g}), on {len(parts.adapters)} linears")
        lines.append(f"layers {frozen} to {layers - 1} and head.dense; all base weights are frozen")
    elif frozen:
        decoder = " (with the decoder tied to them)" if plan.recipe.head == "cloze" else ""
        embeddings = f" and the embeddings{decoder}" if plan.recipe.freeze_embeddings else ""
        lines.append(f"frozen: the lowest {frozen} of {layers} layers{embeddings}")
    else:
        lines.append(f"nothing is frozen; {layers} layers")
    return lines


def describe_cost(plan: Plan) -> list[str]:
    lengths, cost, longest = plan.lengths, plan.cost, plan.lengths.longest
    rows = plan.recipe.optimization.micro_batch_size
    lines = [
        f"{plan.paper_gflop_per_token():.3f} GFLOP a token forward by the paper's formula, 2N + 6N * layers / hidden",
        f"sequences of {lengths.mean:,.0f} tokens in the mean, 95 % of at most {lengths.quantile(0.95):,}, the longest "
        f"of {longest:,}: {lengths.origin}",
    ]
    mean = plan.mean_operations()
    lines.append(f"forward and backward: {operations(mean)} a sequence in the mean")
    if (work := plan.work).training:
        lines[-1] += f", {operations(work.training)} the run"
        lines.append(f"evaluation on held-out pairs: {operations(work.evaluation)} more")
    weights, kept = cost.memory(0, 0), cost.kept_bytes(rows, longest)
    lines.append(
        f"memory of one device: {weights / GIB:.1f} GiB for weights, gradients and Adam, and {kept / GIB:.1f} GiB for "
        f"what {rows} of the longest sequences keep for the backward pass"
    )
    return lines


def describe_hardware(plan: Plan, machines: Sequence[Hardware]) -> list[str]:
    found = [
        fit
        for machine in machines
        for fit in fits(machine, plan.recipe, plan.cost_on_cpu if machine.is_cpu else plan.cost, plan.work)
    ]
    own = plan.recipe.optimization.micro_batch_size
    headers = [
        "",
        "memory",
        f"{own} at\na time need",
        "largest\nmicro batch",
        "the same,\ncheckpointed",
        "time",
        "cost",
    ]
    table = tabulate([hardware_row(fit) for fit in found], headers, disable_numparse=True)
    shares = f"{SHARE_OF_GPU_PEAK:.0%} of a GPU's dense peak, which is assumed, and {SHARE_OF_CPU_PEAK:.0%} of a CPU's"
    prices = dict.fromkeys(f"{fit.hardware.title} {fit.hardware.dollars:.2f}" for fit in found if fit.hardware.dollars)
    lines = [
        *table.splitlines(),
        f"time: of the operations above at {shares}; saving, and reading data, come on top",
        f"memory: an estimate, and {USABLE_SHARE:.0%} of a device's may be used; checkpointed: with "
        "`activation_checkpointing`, a third slower",
    ]
    if prices:
        lines.append(f"dollars an hour: {', '.join(prices)}; examples of 2026, give yours as --price-per-hour")
    return lines


def hardware_row(fit: Fit) -> list[str]:
    needs = "-" if fit.gib is None else f"{fit.gib:.1f} GiB" + ("" if fit.fits else ", too much")
    time = "does not fit" if not (fit.micro_batch or fit.with_checkpointing) else "-"
    return [
        f"{fit.hardware.title}{f', {fit.sharing}' if fit.sharing else ''}",
        f"{fit.hardware.gib:g} GiB",
        needs,
        f"{fit.micro_batch or '-'}",
        f"{fit.with_checkpointing or '-'}",
        time if fit.hours is None else duration(fit.hours),
        "" if not fit.dollars else f"${fit.dollars:,.2f}" if fit.dollars >= 0.01 else "< $0.01",
    ]


def describe_other(recipe: ClozeRecipe, name: str) -> list[str]:
    """Return the fields that differ in another recipe, one line of YAML a key, and its notes."""
    other = load_recipe(find_recipe(name))
    lines = []
    for key, values in differences(comparable(recipe), comparable(other)).items():
        here, there = (
            yaml.safe_dump(without_nones(value), default_flow_style=True, width=10_000, sort_keys=False)
            .removesuffix("\n")
            .removesuffix("\n...")
            for value in values
        )
        lines.append(f"{key}: {there} (here {here})")
    if isinstance(other, ClozeRecipe):
        lines += [f"* {note}" for note in other.notes]
    return lines


def comparable(recipe: AnyRecipe) -> dict[str, Any]:
    """Return the recipe without what differs between any two variants, its template by name."""
    values = recipe.model_dump(mode="json", exclude={"output_dir", "notes"})
    if isinstance(recipe, ClozeRecipe):
        values["spec"]["template"] = recipe.spec.template.name
    return values


def differences(
    one: Mapping[str, object], other: Mapping[str, object], prefix: str = ""
) -> dict[str, tuple[object, object]]:
    """Return key path -> (value of one, value of the other) wherever two recipes differ."""
    found: dict[str, tuple[object, object]] = {}
    for key in sorted(one.keys() | other.keys()):
        ours, theirs = one.get(key), other.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            found |= differences(ours, theirs, f"{prefix}{key}.")
        elif ours != theirs:
            found[f"{prefix}{key}"] = (ours, theirs)
    return found


def without_nones(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_nones(inner) for key, inner in value.items() if inner is not None}
    return [without_nones(inner) for inner in value] if isinstance(value, list) else value
