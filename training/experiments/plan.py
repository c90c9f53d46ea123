"""What a cloze recipe would do, before it does it: pairs, steps, what learns, rates, cost. Needs no network.

Operations of one sequence of S tokens, from sizes alone. Training uses the window as a mask, so every layer computes
all pairs: `tinyrm.flops.executed_flops` of the plain graph, with the whole vocabulary at the mask.

    forward                 every layer, and the head: h^2 + h * vocabulary multiply-adds
    backward, inputs        for each layer that a gradient passes through, those that are not frozen: the linear part
                            once more, attention twice
    backward, weights       the linear part once more, for each layer whose own weights learn
    DoRA, per linear        3 * 2 * S * r * (in + out) for the two factors, and 2 * in * r * (in + out) for each norm,
                            which peft computes by sending the identity through them, once a forward pass

Memory, in bytes: 4 a weight (fp32), 2 more under bf16 autocast, which keeps a cast copy; 12 a learning weight (gradient
and Adam's two moments); and what the layers that learn keep for the backward pass. That is about 10h + 4i numbers a
token and layer (inputs of both norms, of Wqkv, of the rotation, of attention, of both Wo and of Wi, both halves of the
gate, its activation and product), 2 bytes each under bf16, 4 under fp32, and two masks of S^2 a sequence. An adapted
linear keeps its inner r numbers a token, and under DoRA, whose magnitude learns, its own output and the adapter's.
It is an estimate: fragmentation and the library's own buffers come on top.

Sizes of the published models, so that a plan needs no network. ModernBERT: arXiv 2412.13663, table 4. Ettin: arXiv
2507.11412, table 1; the same architecture and vocabulary size.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForMaskedLM, BertConfig, ModernBertConfig, PreTrainedConfig

from tinyrm.errors import InvalidInput
from tinyrm.flops import Geometry, executed_flops, paper_flops
from tinyrm.modernbert.checkpoint import read_config, read_geometry
from tinyrm.modernbert.heads import empty_head
from training.data.mixture import load
from training.data.source import Source, published_pairs
from training.data.split import balanced_counts
from training.loading import RECIPES, find_recipe, load_recipe, recipe_names
from training.recipe import AnyRecipe, ClozeRecipe
from training.stages.cloze import with_learning_parts
from training.trainer import warmup_then_linear

# Mean length of a Skywork pair, by the paper's author: an estimate for such texts, not a property of a recipe.
MEAN_TOKENS = 1553
VARIANTS = ("paper", "author", "tinyrm")
VOCABULARY = 50_368
# Hub id -> layers, hidden size, intermediate size, heads.
PUBLISHED = {
    "answerdotai/ModernBERT-base": (22, 768, 1152, 12),
    "answerdotai/ModernBERT-large": (28, 1024, 2624, 16),
    "jhu-clsp/ettin-encoder-17m": (7, 256, 384, 4),
    "jhu-clsp/ettin-encoder-32m": (10, 384, 576, 6),
    "jhu-clsp/ettin-encoder-68m": (19, 512, 768, 8),
    "jhu-clsp/ettin-encoder-150m": (22, 768, 1152, 12),
    "jhu-clsp/ettin-encoder-400m": (28, 1024, 2624, 16),
    "jhu-clsp/ettin-encoder-1b": (28, 1792, 3840, 28),
}
# The same of BERTs.
PUBLISHED_BERTS: Mapping[str, tuple[int, int, int, int]] = {
    "sentence-transformers/all-MiniLM-L6-v2": (6, 384, 1536, 12)
}


@dataclass(frozen=True, slots=True)
class Learning:
    """parameters: all of the base. learning: those that learn. adapters: (in, out, rank) of each adapted linear."""

    parameters: int
    learning: int
    adapters: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Plan:
    """A recipe with what follows from it.

    domains: for each source, domain -> pairs; None if that is not known before the source is read.
    """

    recipe: ClozeRecipe
    domains: tuple[Mapping[str, int] | None, ...]
    geometry: Geometry
    parts: Learning

    @property
    def pairs(self) -> tuple[int | None, ...]:
        """Pairs of each source."""
        return tuple(None if counts is None else sum(counts.values()) for counts in self.domains)

    @cached_property
    def learned_pairs(self) -> dict[str, int]:
        """Domain -> pairs to learn from, without those held out and those left out for balance; empty if unknown."""
        total: Counter[str] = Counter()
        for counts in self.domains:
            if counts is None:
                return {}
            total.update(counts)
        learn = {domain: round(n * (1 - self.recipe.held_out_fraction)) for domain, n in total.items()}
        return learn if self.recipe.balance == 1 else balanced_counts(learn, self.recipe.balance)

    @property
    def rows(self) -> int:
        """Sequences of one epoch, made-up pairs included."""
        pairs = sum(self.learned_pairs.values())
        made = self.recipe.negatives.beside(pairs) if self.recipe.negatives else 0
        return (pairs + made) * self.recipe.rows_per_pair

    @property
    def published_rows(self) -> int:
        """Sequences of one epoch with nothing held out and nothing left out for balance."""
        return sum(count or 0 for count in self.pairs) * self.recipe.rows_per_pair

    @property
    def steps(self) -> int | None:
        """Optimizer steps of the whole run, as the Trainer counts them; None if they depend on data not yet read."""
        optimization = self.recipe.optimization
        if optimization.max_steps > 0:
            return optimization.max_steps
        per_epoch = math.ceil(self.rows / optimization.batch_size)
        return math.ceil(per_epoch * optimization.epochs) or None

    @property
    def max_tokens(self) -> int:
        return self.recipe.train_max_tokens or self.recipe.spec.max_tokens

    def paper_gflop_per_token(self) -> float:
        return paper_flops(self.parts.parameters, self.geometry, 1) / 1e9

    def rates(self) -> dict[int, float]:
        """Step -> learning rate: the first step, the end of warm-up, the quarters after it, the last step."""
        if not self.steps:
            return {}
        warmup = round(self.steps * self.recipe.optimization.warmup_ratio)
        rest = self.steps - 1 - warmup
        at = sorted({0, warmup, *(warmup + round(rest * share) for share in (0.25, 0.5, 0.75)), self.steps - 1})
        return {step: self.rate(step) for step in at}

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0. Raises ValueError if the number of steps is unknown."""
        if not self.steps:
            raise ValueError("the learning rate depends on the number of steps, which is not known")
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=self.recipe.optimization.peak_lr)
        (factor,) = warmup_then_linear(optimizer, self.recipe.optimization, self.steps).lr_lambdas  # type: ignore[attr-defined]
        return float(self.recipe.optimization.peak_lr * factor(step))


def plan(recipe: ClozeRecipe, data_dir: Path) -> Plan:
    """Raises InvalidInput if the model's sizes are not known, or if no layer is left to learn."""
    config = find_config(recipe.model)
    if recipe.head == "cloze":
        with torch.device("meta"):
            empty = AutoModelForMaskedLM.from_config(config)
    else:
        empty = empty_head(recipe.head, config, recipe.sets)
    parts = learning_parts(with_learning_parts(empty, recipe))
    return Plan(
        recipe, tuple(count_domains(source, data_dir) for source in recipe.sources), read_geometry(config), parts
    )


def find_config(model: str) -> PreTrainedConfig:
    """Return the configuration of a published model, of a folder, or of a folder that a shipped recipe will write.

    Raises InvalidInput for anything else.
    """
    if model in PUBLISHED:
        layers, hidden, intermediate, heads = PUBLISHED[model]
        return ModernBertConfig(
            vocab_size=VOCABULARY,
            num_hidden_layers=layers,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_attention_heads=heads,
        )
    if model in PUBLISHED_BERTS:
        layers, hidden, intermediate, heads = PUBLISHED_BERTS[model]
        return BertConfig(
            num_hidden_layers=layers, hidden_size=hidden, intermediate_size=intermediate, num_attention_heads=heads
        )
    if (Path(model) / "config.json").is_file():
        return read_config(model, Path(model))
    for recipe in map(load_recipe, map(find_recipe, recipe_names())):
        if recipe.output_dir == Path(model) and isinstance(made_from := getattr(recipe, "model", None), str):
            return find_config(made_from)
    raise InvalidInput(
        f"the sizes of {model!r} are not known: it is not a folder with a config.json (has the run that makes it "
        f"ended?) and none of {', '.join((*PUBLISHED, *PUBLISHED_BERTS))}"
    )


def count_domains(source: Source, data_dir: Path) -> Mapping[str, int] | None:
    """Return domain -> pairs: counted in a file that is there, otherwise as published; None if neither is known."""
    if source.path and (data_dir / source.path).is_file():
        return Counter(pair.domain or "none" for pair in load(source, data_dir).pairs)
    published = published_pairs(source)
    return None if published is None else {source.domain or "as the records say": published}


def learning_parts(model: nn.Module) -> Learning:
    """Count on the model itself, which may be on torch's meta device."""
    adapters = tuple(
        (module.in_features, module.out_features, module.r["default"])
        for module in model.modules()
        if isinstance(module, LoraLayer)
    )
    added = ("lora_A", "lora_B", "lora_magnitude_vector")
    base = [p for name, p in model.named_parameters() if not any(part in name for part in added)]
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Learning(sum(p.numel() for p in base), learning, adapters)


def training_flops(geometry: Geometry, recipe: ClozeRecipe, parts: Learning, tokens: int) -> int:
    """Return the operations of forward and backward of one sequence of `tokens` tokens."""
    h = geometry.hidden
    dense, decoder = 2 * h * h, 2 * h * geometry.vocab
    # The plain graph has two rows of the decoder; training has all of them.
    layers = executed_flops(geometry, tokens, "plain") - dense - 2 * h * 2
    attention = 2 * 2 * h * tokens * tokens
    linear = layers // geometry.layers - attention
    forward = layers + dense + decoder
    above = geometry.layers - recipe.frozen_layers
    ends = gradient_ends_below(recipe)
    inputs = (above if ends else geometry.layers) * (linear + 2 * attention) + dense + decoder
    if not recipe.dora:
        return forward + inputs + above * linear + dense + (0 if ends else decoder)
    # Below the lowest Wqkv nothing learns, not even the norm before it.
    own = -2 * tokens * 3 * h * h
    for wide_in, wide_out, rank in parts.adapters:
        own += 3 * 2 * tokens * rank * (wide_in + wide_out)
        if recipe.dora.magnitude:  # the sequences of one forward pass share the norm
            own += 2 * wide_in * rank * (wide_in + wide_out) // recipe.optimization.micro_batch_size
    return forward + inputs + own


def gradient_ends_below(recipe: ClozeRecipe) -> bool:
    """Return whether no gradient passes through the frozen layers, because nothing below them learns."""
    return recipe.dora is not None or (recipe.frozen_layers > 0 and recipe.freeze_embeddings)


def memory_bytes(geometry: Geometry, recipe: ClozeRecipe, parts: Learning, tokens: int) -> int:
    """Return the memory of a device whose forward pass reads `micro_batch_size` sequences of `tokens` tokens."""
    half = recipe.optimization.precision == "bf16"
    held = parts.parameters + (parts.learning if recipe.dora else 0)
    weights = held * (6 if half else 4) + parts.learning * 12
    layers = geometry.layers - (recipe.frozen_layers if gradient_ends_below(recipe) else 0)
    outputs = 2 if recipe.dora and recipe.dora.magnitude else 0
    adapted = sum(rank + outputs * wide_out for _, wide_out, rank in parts.adapters)
    kept = (layers * (10 * geometry.hidden + 4 * geometry.intermediate) + adapted) * tokens + 2 * tokens * tokens
    return weights + recipe.optimization.micro_batch_size * kept * (2 if half else 4)


def render(plan: Plan, path: Path) -> str:
    """Return the plan as text for a terminal, with what the other variants of the same row do differently."""
    sections = {
        "recipe": describe_recipe(plan.recipe, path),
        "data, as published": describe_data(plan),
        "steps": describe_steps(plan),
        "what learns": describe_learning(plan),
        "learning rate": [f"step {step:>6,}  {rate:.3e}" for step, rate in plan.rates().items()],
        "cost": describe_cost(plan),
        "notes": [f"* {note}" for note in plan.recipe.notes],
    }
    variant, row = path.resolve().parent, path.stem
    if variant.parent == RECIPES and variant.name in VARIANTS:
        for other in VARIANTS:
            if other != variant.name and f"{other}/{row}" in recipe_names():
                sections[f"{other}/{row} differs in"] = describe_other(plan.recipe, f"{other}/{row}")
    return "\n\n".join("\n  ".join([f"{title}:", *lines]) for title, lines in sections.items() if lines)


def describe_recipe(recipe: ClozeRecipe, path: Path) -> list[str]:
    orders = "both of every pair" if recipe.orders == "both" else "one, by a seeded coin"
    if recipe.orders == "coin" and recipe.coin_pairs > 1:
        orders += f" for each {recipe.coin_pairs:,} neighbours"
    return [
        f"file          {path.relative_to(RECIPES.parents[1]) if path.is_relative_to(RECIPES) else path}",
        f"model         {recipe.model}",
        f"writes        {recipe.output_dir}",
        f"template      {recipe.spec.template.name}, labels {recipe.spec.template.label_words}",
        f"max length    {recipe.train_max_tokens or recipe.spec.max_tokens} tokens",
        f"orders        {orders}",
        f"loss          {recipe.loss}",
        *(
            f"prefix        {domain}: {' | '.join(recipe.prefixes.get(domain, (instruction,)))}"
            for domain, instruction in recipe.spec.domains.items()
        ),
    ]


def describe_data(plan: Plan) -> list[str]:
    lines = []
    for source, count in zip(plan.recipe.sources, plan.pairs, strict=True):
        pairs = "not known before it is read" if count is None else f"{count:,} pairs"
        lines.append(f"{source.name:<24} {source.domain or '':<10} {pairs}")
    if plan.learned_pairs:
        learn = ", ".join(f"{domain} {count:,}" for domain, count in plan.learned_pairs.items())
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
        whole = plan.published_rows // optimization.batch_size
        lines.append(f"{epochs:.3g} epochs of {plan.rows:,} sequences, {plan.recipe.rows_per_pair} of each pair")
        lines.append(f"{whole:,} whole batches an epoch with nothing held or left out")
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
        embeddings = " and the embeddings (with the decoder tied to them)" if plan.recipe.freeze_embeddings else ""
        lines.append(f"frozen: the lowest {frozen} of {layers} layers{embeddings}")
    else:
        lines.append(f"nothing is frozen; {layers} layers")
    return lines


def describe_cost(plan: Plan) -> list[str]:
    gflop = plan.paper_gflop_per_token()
    lines = [f"{gflop:.3f} GFLOP a token forward by the paper's formula, 2N + 6N * layers / hidden"]
    for tokens, kind in ((min(MEAN_TOKENS, plan.max_tokens), "assumed mean"), (plan.max_tokens, "maximum")):
        flops = training_flops(plan.geometry, plan.recipe, plan.parts, tokens)
        memory = memory_bytes(plan.geometry, plan.recipe, plan.parts, tokens) / 2**30
        sequences = (plan.steps or 0) * plan.recipe.optimization.batch_size
        run = f"{operations(flops * sequences)} the run, " if sequences else ""
        lines.append(f"at {tokens:,} tokens ({kind}): {operations(flops)} a sequence, {run}{memory:.1f} GiB")
    if plan.recipe.head != "cloze":
        lines.append(f"operations and memory are the cloze's; head {plan.recipe.head} has no vocabulary to compute")
    lines.append("formulas: training/experiments/plan.py (forward and backward; no recomputation, one device)")
    return lines


def operations(flops: float) -> str:
    """Return the number in the largest unit, G to E, with at least one digit before the point."""
    power = max(3, min(6, int(math.log10(max(flops, 1))) // 3))
    return f"{flops / 1000**power:.3f} {'GTPE'[power - 3]}FLOP"


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
