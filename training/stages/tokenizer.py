"""A byte-level BPE vocabulary of our own."""

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from training.data.corpus import load_texts
from training.output import refuse_weights
from training.recipe import TokenizerRecipe

SPECIAL_NAMES = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")

# GPT-2's word pattern with one change: each digit is a word (with the space before it), so that 17 and 71 are two
# arrangements of the same tokens and a changed digit is one changed token. " 0" and " 1" stay single tokens.
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train_tokenizer(recipe: TokenizerRecipe, data_dir: Path, *, fresh: bool = False) -> None:
    """Write tokenizer.json and its configuration to `recipe.output_dir`.

    Raises InvalidInput if the folder holds a model, whose tokenizer would be another one, and `fresh` is not given.
    """
    if not fresh:
        refuse_weights(recipe.output_dir, recipe.task)
    texts = load_texts(recipe.texts, data_dir, recipe.seed)
    wrap(train_bpe(texts, recipe.vocab_size)).save_pretrained(recipe.output_dir)


def train_bpe(texts: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # [MASK] includes the space on its left, as in ModernBERT, so that the masked word is the spaced form.
    special = [AddedToken(name, special=True, lstrip=name == "[MASK]") for name in SPECIAL_NAMES]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return tokenizer


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return the tokenizer with the roles of its special tokens, as transformers saves and loads it."""
    unk, cls, sep, pad, mask = SPECIAL_NAMES
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unk, cls_token=cls, sep_token=sep, pad_token=pad, mask_token=mask
    )
