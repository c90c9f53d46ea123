"""Masked-LM pre-training: a small base from plain text."""

from itertools import chain
from pathlib import Path

import torch
from torch.utils.data import Dataset, Subset
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    ModernBertConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    set_seed,
)

from tinyrm.errors import InvalidInput
from tinyrm.modernbert.checkpoint import load_masked_lm
from tinyrm.modernbert.files import input_errors
from training.arguments import training_arguments
from training.data.corpus import load_texts
from training.model.places import HeadAtPlaces
from training.output import begin, file_hashes, pinned, prepare_output, write_run
from training.processes import on_main
from training.recipe import NewModel, PretrainRecipe
from training.trainer import DecoupledTrainer

VALIDATION_BLOCKS = 64


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Texts joined by [SEP] and split into blocks of equal length: no padding, one shape."""

    def __init__(self, texts: list[str], tokenizer: PreTrainedTokenizerFast, block_tokens: int) -> None:
        # Text that happens to contain "[MASK]" stays text.
        rows = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        stream = torch.tensor(
            list(chain.from_iterable([*row, tokenizer.sep_token_id] for row in rows)), dtype=torch.int32
        )
        body = block_tokens - 1
        count = len(stream) // body
        first = torch.full((count, 1), tokenizer.cls_token_id, dtype=torch.int32)
        self.blocks = torch.cat([first, stream[: count * body].view(count, body)], dim=1)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.blocks[index].long()}


def pretrain(recipe: PretrainRecipe, data_dir: Path, *, resume: bool, fresh: bool = False) -> None:
    """Train and write a checkpoint with its tokenizer to `recipe.output_dir`."""
    arguments = training_arguments(recipe)
    hashes = on_main(lambda: file_hashes(data_dir, (text.path for text in recipe.texts)))
    start = prepare_output(recipe, hashes, resume=resume, fresh=fresh)
    set_seed(recipe.optimization.seed)
    with input_errors(f"the tokenizer of {recipe.tokenizer} cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(recipe.tokenizer)
    blocks = on_main(
        lambda: Blocks(load_texts(recipe.texts, data_dir, recipe.optimization.seed), tokenizer, recipe.block_tokens)
    )
    if len(blocks) <= VALIDATION_BLOCKS:
        raise InvalidInput(
            f"{len(blocks)} blocks of text are too few; {VALIDATION_BLOCKS} blocks are needed for validation alone"
        )
    model = initial_model(
        recipe.model,
        tokenizer,
        revision=pinned(recipe, start).revision,
        new_head=recipe.new_head,
        attention=recipe.attention,
    )
    HeadAtPlaces(model)
    trainer = DecoupledTrainer(
        recipe=recipe,
        model=model,
        args=arguments,
        train_dataset=Subset(blocks, range(VALIDATION_BLOCKS, len(blocks))),
        eval_dataset=Subset(blocks, range(VALIDATION_BLOCKS)),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=recipe.mask_rate),
    )
    begin(recipe.output_dir, start)
    trainer.train(resume_from_checkpoint=start.checkpoint)
    trainer.save_model(_internal_call=True)  # it is pushed when the folder is complete
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(recipe.output_dir)
        # The next stage keeps this record as that of its base.
        write_run(recipe.output_dir, {**start.identity, "recipe": recipe.model_dump(mode="json")})
    trainer.publish()


def initial_model(
    model: NewModel | str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    revision: str | None = None,
    new_head: bool = False,
    attention: str | None = None,
) -> PreTrainedModel:
    """Return a new model of the given geometry, or a pre-trained one to continue, as `load_masked_lm` does."""
    if isinstance(model, str):
        return load_masked_lm(model, revision=revision, new_head=new_head, attention=attention)
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        bos_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        eos_token_id=tokenizer.sep_token_id,
        **model.model_dump(),
    )
    with input_errors(f"attention: {attention} cannot be used"):
        new: PreTrainedModel = AutoModelForMaskedLM.from_config(config, attn_implementation=attention)
    return new
