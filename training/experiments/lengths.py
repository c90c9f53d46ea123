"""How long the texts of a recipe are: measured on its own pairs where they are, otherwise assumed."""

from dataclasses import dataclass
from random import Random

import numpy as np
from tokenizers import Tokenizer

from tinyrm.encoding import Encoder, SpecialTokens
from tinyrm.modernbert.checkpoint import load_tokenizer
from tinyrm.modernbert.files import local_folder
from tinyrm.negatives import Pool
from tinyrm.pairs import PreferencePair
from training.data.collate import characters, longest_first
from training.recipe import ClozeRecipe
from training.stages.cloze import show

# Mean length of a Skywork pair, by the paper's author: an estimate for such texts, not a property of a recipe.
MEAN_TOKENS = 1553
# Of English text with a vocabulary of 30,000 to 50,000 tokens.
CHARACTERS_PER_TOKEN = 4
SAMPLE = 500
LONGEST = 8


@dataclass(frozen=True, slots=True)
class Lengths:
    """tokens: of a sample of the sequences. longest: of the longest one. origin: where both come from, in words."""

    tokens: tuple[int, ...]
    longest: int
    origin: str

    @property
    def mean(self) -> float:
        return float(np.mean(self.tokens))

    def quantile(self, share: float) -> int:
        return int(np.quantile(self.tokens, share))


def assumed_lengths(recipe: ClozeRecipe) -> Lengths:
    """Return the mean of a published set for every text, where there are no pairs to measure."""
    longest = recipe.training_tokens
    return Lengths((min(MEAN_TOKENS, longest),), longest, "assumed, for want of the pairs")


def measured_lengths(recipe: ClozeRecipe, learn: list[PreferencePair], pool: Pool) -> Lengths:
    """Return the lengths of a sample of what is learnt from, and of the longest, as the recipe shows them."""
    sample = sampled(recipe, learn)
    by_length = longest_first(learn)[:LONGEST]
    found = local_tokenizer(recipe)
    most = recipe.training_tokens
    if found is None:
        tokens, long = ([min(most, estimated_tokens(recipe, pair)) for pair in part] for part in (sample, by_length))
        origin = f"about {CHARACTERS_PER_TOKEN} characters a token, for want of the tokenizer"
    else:
        tokenizer, special = found
        encoder = Encoder(tokenizer, recipe.spec.template, special, most)
        tokens, long = (
            show(recipe, list(part), [], pool, encoder=encoder, tokenizer=tokenizer).learn.lengths()
            for part in (sample, by_length)
        )
        origin = f"measured on {len(sample):,} of {len(learn):,} pairs"
    return Lengths(tuple(tokens), max(*tokens, *long), origin)


def sampled(recipe: ClozeRecipe, learn: list[PreferencePair]) -> list[PreferencePair]:
    """Return some of the pairs; where those of a prompt are joined, all pairs of some prompts."""
    draw = Random(recipe.optimization.seed)
    if recipe.max_responses == 2:
        return draw.sample(learn, min(SAMPLE, len(learn)))
    prompts = sorted({pair.prompt for pair in learn})
    some = set(draw.sample(prompts, min(SAMPLE, len(prompts))))
    return [pair for pair in learn if pair.prompt in some]


def estimated_tokens(recipe: ClozeRecipe, pair: PreferencePair) -> int:
    """Return about how many tokens the longest sequence of a pair has."""
    is_alone = recipe.head in ("pointwise", "tokens")
    shorter = min(len(pair.chosen), len(pair.rejected)) if is_alone else 0
    return (characters(pair) - shorter) // CHARACTERS_PER_TOKEN


def local_tokenizer(recipe: ClozeRecipe) -> tuple[Tokenizer, SpecialTokens] | None:
    """Return the base's tokenizer if it is on this machine: nothing is fetched."""
    folder = local_folder(recipe.model, recipe.revision)
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    return load_tokenizer(str(folder))
