"""A plan as text for a terminal."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from training.experiments.estimate import memory_bytes, training_flops
from training.experiments.plan import Plan, differences
from training.loading import RECIPES, find_recipe, load_recipe, recipe_names
from training.recipe import AnyRecipe, ClozeRecipe

VARIANTS = ("paper", "author", "tinyrm")
# What differs in every pair of variants and says nothing.
NOT_COMPARED = frozenset({"output_dir", "notes"})


def render(plan: Plan, path: Path) -> str:
    """All sections, with a line between them."""
    sections = {
        "recipe": _recipe(plan.recipe, path),
        "data, as published": _data(plan),
        "steps": _steps(plan),
        "what learns": _learning(plan),
        "learning rate": (f"step {step:>6,}  {rate:.3e}" for step, rate in plan.rates().items()),
        "cost": _cost(plan),
        "notes": (f"* {note}" for note in plan.recipe.notes),
    }
    sections |= {f"{other} does otherwise": _otherwise(plan.recipe, other) for other in siblings(path)}
    return "\n\n".join(
        "\n".join([f"{title}:", *(f"  {line}" for line in lines)]) for title, lines in _with_lines(sections)
    )


def siblings(path: Path) -> list[str]:
    """The same row in the other variants."""
    variant, row = path.resolve().parent, path.stem
    if variant.parent != RECIPES or variant.name not in VARIANTS:
        return []
    return [name for other in VARIANTS if (name := f"{other}/{row}") in recipe_names() and other != variant.name]


def _with_lines(sections: dict[str, Iterator[str]]) -> Iterator[tuple[str, list[str]]]:
    for title, lines in sections.items():
        if found := list(lines):
            yield title, found


def _recipe(recipe: ClozeRecipe, path: Path) -> Iterator[str]:
    yield f"file          {_shown(path)}"
    yield f"model         {recipe.model}"
    yield f"writes        {recipe.output_dir}"
    yield f"template      {recipe.spec.template.name}, labels {recipe.spec.template.label_words}"
    yield f"max length    {recipe.train_max_tokens or recipe.spec.max_tokens} tokens"
    shown = "both of every pair" if recipe.orders == "both" else "one, by a seeded coin"
    shared = f" for each {recipe.coin_pairs:,} neighbours" if recipe.orders == "coin" and recipe.coin_pairs > 1 else ""
    yield f"orders        {shown}{shared}"
    yield f"loss          {recipe.loss}"
    for domain, instruction in recipe.spec.domains.items():
        said = " | ".join(recipe.prefixes.get(domain, (instruction,)))
        yield f"prefix        {domain}: {said}"


def _shown(path: Path) -> Path:
    return path.relative_to(RECIPES.parents[1]) if path.is_relative_to(RECIPES) else path


def _data(plan: Plan) -> Iterator[str]:
    for source, count in zip(plan.recipe.sources, plan.pairs, strict=True):
        pairs = "not known before it is read" if count is None else f"{count:,} pairs"
        yield f"{source.name:<24} {source.domain or '':<10} {pairs}"
    if plan.learned_pairs:
        learn = ", ".join(f"{domain} {count:,}" for domain, count in plan.learned_pairs.items())
        yield f"to learn from, without {plan.recipe.held_out_fraction:.0%} held out: {learn}"


def _steps(plan: Plan) -> Iterator[str]:
    optimization = plan.recipe.optimization
    steps = f"{plan.steps:,} steps" if plan.steps else "as many steps as the data give"
    batch = f"{optimization.batch_size} sequences, {optimization.micro_batch_size} at a time"
    yield f"{steps} of {batch}, {optimization.precision}, seed {optimization.seed}"
    if plan.rows:
        whole = plan.published_rows // optimization.batch_size
        by_steps = optimization.max_steps * optimization.batch_size / plan.rows
        epochs = by_steps if optimization.max_steps > 0 else optimization.epochs
        yield f"{epochs:.3g} epochs of {plan.rows:,} sequences, {plan.recipe.rows_per_pair} of each pair"
        yield f"{whole:,} whole batches an epoch with nothing held or left out"
    decay = f"weight decay {optimization.weight_decay:g} a step at the peak"
    yield f"decoupled AdamW, betas {optimization.betas}, eps {optimization.eps:g}, {decay}"
    yield f"which is torch's weight_decay {optimization.weight_decay / optimization.peak_lr:.3f}"


def _learning(plan: Plan) -> Iterator[str]:
    parts, dora = plan.parts, plan.recipe.dora
    share = parts.learning / parts.parameters
    yield f"{parts.learning:,} of {parts.parameters:,} parameters ({share:.1%})"
    frozen = plan.recipe.frozen_layers
    if dora:
        kind = f"{'DoRA' if dora.magnitude else 'LoRA'} of rank {dora.rank}, alpha {dora.alpha}"
        yield f"{kind} (scale {dora.alpha / dora.rank:g}), on {len(parts.adapters)} linears"
        yield f"layers {frozen} to {plan.geometry.layers - 1} and head.dense; all base weights are frozen"
    elif frozen:
        with_them = " and the embeddings (with the decoder tied to them)" if plan.recipe.freeze_embeddings else ""
        yield f"frozen: the lowest {frozen} of {plan.geometry.layers} layers{with_them}"
    else:
        yield f"nothing is frozen; {plan.geometry.layers} layers"


def _cost(plan: Plan) -> Iterator[str]:
    yield f"{plan.paper_gflop_per_token():.3f} GFLOP a token forward by the paper's formula, 2N + 6N * layers / hidden"
    for tokens, kind in ((plan.tokens, "assumed mean"), (plan.max_tokens, "maximum")):
        flops = training_flops(plan.geometry, plan.recipe, plan.parts, tokens)
        memory = memory_bytes(plan.geometry, plan.recipe, plan.parts, tokens)
        sequences = (plan.steps or 0) * plan.recipe.optimization.batch_size
        run = f"{operations(flops * sequences)} the run, " if sequences else ""
        yield f"at {tokens:,} tokens ({kind}): {operations(flops)} a sequence, {run}{memory / 2**30:.1f} GiB"
    if plan.recipe.head != "cloze":
        yield f"operations and memory are those of the cloze; head: {plan.recipe.head} has no vocabulary to compute"
    yield "formulas: training/experiments/estimate.py (forward and backward as run; no recomputation, one device)"


def _otherwise(recipe: ClozeRecipe, name: str) -> Iterator[str]:
    other = load_recipe(find_recipe(name))
    for key, (here, there) in differences(_comparable(recipe), _comparable(other)).items():
        yield f"{key}: {_short(there)} (here {_short(here)})"
    if isinstance(other, ClozeRecipe):
        yield from (f"* {note}" for note in other.notes)


def _comparable(recipe: AnyRecipe) -> dict[str, Any]:
    values = recipe.model_dump(mode="json", exclude=set(NOT_COMPARED))
    if isinstance(recipe, ClozeRecipe):
        values["spec"]["template"] = recipe.spec.template.name
    return values


def _short(value: object) -> str:
    """One line of YAML without what is not said."""
    said = yaml.safe_dump(_said(value), default_flow_style=True, width=10_000, sort_keys=False)
    return said.removesuffix("\n").removesuffix("\n...")


def _said(value: object) -> object:
    if isinstance(value, dict):
        return {key: _said(inner) for key, inner in value.items() if inner is not None}
    return [_said(inner) for inner in value] if isinstance(value, list) else value


def operations(flops: float) -> str:
    """In the largest unit that leaves something before the point."""
    power = max(3, min(6, int(math.log10(max(flops, 1))) // 3))
    return f"{flops / 1000**power:.3f} {'GTPE'[power - 3]}FLOP"
