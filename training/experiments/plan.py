"""What a cloze recipe would do, before it does it: pairs, steps, what learns, rates. Needs no network.

Pairs that are on this machine are read, and divided and joined as training does it, so that what they give is exact.
Others are counted as published; of those the plan is an estimate, by the share of prompts that is held out.

Sizes of the published models, so that a plan needs no network. ModernBERT: arXiv 2412.13663, table 4. Ettin: arXiv
2507.11412, table 1; the same architecture and vocabulary size.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import BertConfig, ModernBertConfig, PreTrainedConfig

from tinyrm.errors import InvalidInput
from tinyrm.flops import Geometry, paper_flops
from tinyrm.modernbert.checkpoint import read_config, read_geometry
from tinyrm.modernbert.files import local_folder
from tinyrm.pairs import PreferencePair
from training.data.groups import groups_of
from training.data.mixture import load, load_all
from training.data.rows import find_local
from training.data.source import Source, published_pairs
from training.data.split import balanced_counts
from training.experiments.hardware import Work
from training.experiments.lengths import Lengths, assumed_lengths, measured_lengths
from training.experiments.step_cost import StepCost, empty_model, step_cost
from training.loading import find_recipe, load_recipe, recipe_names
from training.recipe import AnyRecipe, ClozeRecipe, NewModel, PretrainRecipe, TokenizerRecipe
from training.stages.cloze import divided
from training.trainer import warmup_then_linear

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


@dataclass(frozen=True, slots=True)
class Given:
    """What a source gives.

    domains: domain -> pairs; None if that is not known before the source is read.
    is_read: whether they were counted, rather than taken from what is published.
    """

    domains: Mapping[str, int] | None
    is_read: bool


@dataclass(frozen=True, slots=True)
class Divided:
    """Pairs that were read, as training divides them.

    learn: domain -> pairs to learn from, made-up ones left out.
    sequences: of one epoch, made-up ones included.
    held_out: sequences of one evaluation.
    """

    learn: Mapping[str, int]
    sequences: int
    held_out: int


@dataclass(frozen=True)
class Plan:
    """A recipe with what follows from it.

    sources: what each source gives, in the recipe's order.
    divided: None if a source is not on this machine.
    """

    recipe: ClozeRecipe
    sources: tuple[Given, ...]
    divided: Divided | None
    lengths: Lengths
    config: PreTrainedConfig
    geometry: Geometry
    parts: Learning

    @property
    def pairs(self) -> tuple[int | None, ...]:
        """Pairs of each source."""
        return tuple(None if each.domains is None else sum(each.domains.values()) for each in self.sources)

    @cached_property
    def learned_pairs(self) -> Mapping[str, int]:
        """Domain -> pairs to learn from, without those held out and those left out for balance; empty if unknown."""
        if self.divided:
            return self.divided.learn
        total: Counter[str] = Counter()
        for each in self.sources:
            if each.domains is None:
                return {}
            total.update(each.domains)
        learn = {domain: round(n * (1 - self.recipe.held_out_fraction)) for domain, n in total.items()}
        return learn if self.recipe.balance == 1 else balanced_counts(learn, self.recipe.balance)

    @property
    def rows(self) -> int:
        """Sequences of one epoch, made-up pairs included."""
        if self.divided:
            return self.divided.sequences
        pairs = sum(self.learned_pairs.values())
        made = self.recipe.negatives.beside(pairs) if self.recipe.negatives else 0
        return (pairs + made) * self.recipe.rows_per_pair

    @property
    def held_out_rows(self) -> int:
        """Sequences of one evaluation: both orders, or both responses, of each pair held out."""
        if self.divided:
            return self.divided.held_out
        held_out = sum(count or 0 for count in self.pairs) * self.recipe.held_out_fraction
        return round(held_out) * (1 if self.recipe.head == "set" else 2)

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

    @cached_property
    def cost(self) -> StepCost:
        """What a step costs on a GPU."""
        return step_cost(self.recipe, self.config)

    @cached_property
    def cost_on_cpu(self) -> StepCost:
        """The same where attention with dropout has no fused kernel."""
        own = getattr(self.config, "attention_probs_dropout_prob", getattr(self.config, "attention_dropout", 0.0))
        dropout = own if self.recipe.attention_dropout is None else self.recipe.attention_dropout
        return step_cost(self.recipe, self.config, on_cpu=True) if dropout else self.cost

    @cached_property
    def work(self) -> Work:
        """What the whole run has to compute."""
        optimization = self.recipe.optimization
        steps = min(self.steps or 0, max(optimization.average, default=self.steps or 0))
        sequences = steps * optimization.batch_size
        # As many evaluations as there are multiples of eval_steps, and one at the end.
        evaluations = steps // optimization.eval_steps + 1 if steps else 0
        forward = self.mean_operations(backward=False)
        return Work(
            longest=self.lengths.longest,
            training=sequences * self.mean_operations(),
            recomputed=sequences * forward,
            evaluation=evaluations * self.held_out_rows * forward,
        )

    def mean_operations(self, *, backward: bool = True) -> float:
        """Return the mean operations of a sequence. Batches hold texts of similar length, so little is padding."""
        rows = self.recipe.optimization.micro_batch_size
        passes = [self.cost.operations(rows, tokens, backward=backward) for tokens in self.lengths.tokens]
        return float(np.mean(passes)) / rows

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
    """Raises InvalidInput if the model's sizes are not known, if no layer is left to learn, or if pairs are damaged."""
    config = find_config(recipe.model)
    parts = learning_parts(empty_model(recipe, config))
    sources, pairs = read_sources(recipe, data_dir)
    if pairs is None:
        counted, lengths = None, assumed_lengths(recipe)
    else:
        counted, lengths = divide(recipe, pairs)
    return Plan(recipe, sources, counted, lengths, config, read_geometry(config), parts)


def read_sources(recipe: ClozeRecipe, data_dir: Path) -> tuple[tuple[Given, ...], list[PreferencePair] | None]:
    """Return what each source gives, and the pairs of all of them; None if one is not on this machine."""
    if all(is_here(source, data_dir) for source in recipe.sources):
        mixture = load_all(recipe.sources, data_dir)
        given = tuple(Given(domains(part.pairs), is_read=True) for part in mixture.parts.values())
        return given, mixture.loaded.pairs
    return tuple(give(source, data_dir) for source in recipe.sources), None


def is_here(source: Source, data_dir: Path) -> bool:
    """Return whether a source can be read without the hub."""
    if source.path is not None:
        return (data_dir / source.path).exists()
    return source.dataset != "hub" and find_local(source, data_dir) is not None


def give(source: Source, data_dir: Path) -> Given:
    if is_here(source, data_dir):
        return Given(domains(load(source, data_dir).pairs), is_read=True)
    published = published_pairs(source)
    return Given(None if published is None else {source.domain or "as the records say": published}, is_read=False)


def domains(pairs: list[PreferencePair]) -> Mapping[str, int]:
    return Counter(pair.domain or "none" for pair in pairs)


def divide(recipe: ClozeRecipe, pairs: list[PreferencePair]) -> tuple[Divided, Lengths]:
    """Divide pairs as training does. Raises InvalidInput if they are too few."""
    learn, held_out, pool = divided(recipe, pairs)
    own = list(pool.pairs)  # without those that are made up
    groups = len(groups_of(learn, recipe.max_responses, recipe.optimization.seed))
    of_pair = 1 if recipe.head == "set" else 2
    counted = Divided(domains(own), groups * recipe.rows_per_pair, len(held_out) * of_pair)
    return counted, measured_lengths(recipe, own, pool)


def find_config(model: str) -> PreTrainedConfig:
    """Return the configuration of a published model, of a folder or the hub's cache, or of what a recipe will write.

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
    folder = local_folder(model)
    if folder and (folder / "config.json").is_file():
        return read_config(model, folder)
    maker = recipe_that_writes(model)
    if isinstance(maker, PretrainRecipe) and isinstance(maker.model, NewModel):
        words = recipe_that_writes(maker.tokenizer)
        if isinstance(words, TokenizerRecipe):
            ids = dict.fromkeys((f"{role}_token_id" for role in ("pad", "cls", "sep", "bos", "eos")), 0)
            return ModernBertConfig(vocab_size=words.vocab_size, **ids, **maker.model.model_dump())
    elif isinstance(made_from := getattr(maker, "model", None), str):
        return find_config(made_from)
    raise InvalidInput(
        f"the sizes of {model!r} are not known: it is not a folder with a config.json (has the run that makes it "
        f"ended?) and none of {', '.join((*PUBLISHED, *PUBLISHED_BERTS))}"
    )


def recipe_that_writes(folder: str) -> AnyRecipe | None:
    """Return the shipped recipe with this output folder."""
    recipes = map(load_recipe, map(find_recipe, recipe_names()))
    return next((recipe for recipe in recipes if recipe.output_dir == Path(folder)), None)


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


def operations(flops: float) -> str:
    """Return the number in the largest unit, G to E, with at least one digit before the point."""
    power = max(3, min(6, int(math.log10(max(flops, 1))) // 3))
    return f"{flops / 1000**power:.3f} {'GTPE'[power - 3]}FLOP"
