"""The SFT stage: a masked LM reads conversations and predicts what the assistant wrote."""

import hashlib
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerFast,
    set_seed,
)

from tinyrm.errors import InvalidInput
from tinyrm.modernbert.checkpoint import load_masked_lm, load_tokenizer
from tinyrm.modernbert.files import checkpoint_folder, input_errors
from tinyrm.pairs import read_records
from tinyrm.plain_text import plain_text_tokenizer
from training.arguments import training_arguments
from training.data.collate import IGNORED
from training.data.conversations import Conversation, EncodedConversation, encode_conversation
from training.data.rows import data_file
from training.data.split import split_by_opening
from training.model.adapter import freeze_lowest
from training.model.places import HeadAtPlaces
from training.output import begin, file_hashes, pinned, prepare_output, write_run
from training.processes import on_main
from training.recipe import SftRecipe
from training.trainer import LengthGroupedTrainer

Row = dict[str, Tensor]
# What a dataset makes of a conversation: input_ids and labels, [tokens] each. The text seeds the random draw.
Objective = Callable[[EncodedConversation, str], Row]


def train_sft(recipe: SftRecipe, data_dir: Path, *, resume: bool, fresh: bool = False) -> None:
    """Train and write a checkpoint with its tokenizer and a record to `recipe.output_dir`."""
    arguments = training_arguments(recipe)
    hashes = on_main(lambda: file_hashes(data_dir, recipe.conversations))
    start = prepare_output(recipe, hashes, resume=resume, fresh=fresh)
    fixed = pinned(recipe, start)
    set_seed(recipe.optimization.seed)
    with input_errors(f"the tokenizer of {recipe.model} cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint_folder(fixed.model, fixed.revision))
    learn, held_out = load_conversations(fixed, data_dir, tokenizer)
    model = load_masked_lm(fixed.model, revision=fixed.revision, new_head=recipe.new_head, attention=recipe.attention)
    HeadAtPlaces(model)
    freeze_lowest(model, recipe.frozen_layers)
    trainer = LengthGroupedTrainer(
        recipe=recipe,
        model=model,
        args=arguments,
        train_dataset=learn,
        eval_dataset=held_out,
        data_collator=DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED),
    )
    begin(recipe.output_dir, start)
    trainer.train(resume_from_checkpoint=start.checkpoint)
    metrics = trainer.evaluate()
    trainer.save_model(_internal_call=True)  # it is pushed when the folder is complete
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(recipe.output_dir)
        # The reward stage keeps this record as that of its base.
        run = {**start.identity, "recipe": recipe.model_dump(mode="json"), "held_out": metrics}
        write_run(recipe.output_dir, run)
    trainer.publish()


def load_conversations(
    recipe: SftRecipe, data_dir: Path, tokenizer: PreTrainedTokenizerFast
) -> "tuple[Conversations, Conversations]":
    """Return (learn from, held out). Raises InvalidInput if either is empty."""
    conversations = on_main(
        lambda: list(chain(*(read_records(data_file(data_dir, p), Conversation) for p in recipe.conversations)))
    )
    seed = recipe.optimization.seed
    objective = MaskAssistant(recipe, tokenizer) if recipe.objective == "masked" else copy_assistant
    backend, special = load_tokenizer(recipe.model, recipe.revision)
    plain = plain_text_tokenizer(backend)
    sides = []
    for side in split_by_opening(conversations, recipe.held_out_fraction, seed):
        encoded = (encode_conversation(c, plain, special, recipe.turn_names, recipe.max_tokens) for c in side)
        sides.append([conversation for conversation in encoded if conversation])
    # Similar lengths share a batch of an evaluation, too, and what does not fit in memory fails in its first.
    sides[1].sort(key=lambda conversation: len(conversation.input_ids), reverse=True)
    learn, held_out = (Conversations(side, objective, seed) for side in sides)
    if not len(learn) or not len(held_out):
        raise InvalidInput(
            f"{len(conversations)} conversations are too few: the assistant speaks in {len(learn)} to learn from "
            f"and in {len(held_out)} held out"
        )
    return learn, held_out


class Conversations(Dataset[Row]):
    """Row i hides other tokens in each epoch; the draw depends on seed and epoch only, so a run can resume.

    The data loader sets the epoch; of held-out conversations it remains 0.
    """

    def __init__(self, conversations: list[EncodedConversation], objective: Objective, seed: int) -> None:
        # Shared with the processes of a data loader, which may live for several epochs.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._conversations = conversations
        self._objective = objective
        self._seed = seed

    def __len__(self) -> int:
        return len(self._conversations)

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> Row:
        return self._objective(self._conversations[index], f"{self._seed}:{int(self._epoch)}:{index}")

    def lengths(self) -> list[int]:
        """Return the tokens of each conversation."""
        return [len(conversation.input_ids) for conversation in self._conversations]


class MaskAssistant:
    """Hides a share of the assistant's tokens, at least one: most become [MASK], some a random token, some stay.

    labels: the hidden ids at the hidden positions, IGNORED elsewhere.
    """

    def __init__(self, recipe: SftRecipe, tokenizer: PreTrainedTokenizerFast) -> None:
        self._masker = DataCollatorForLanguageModeling(
            tokenizer,
            mlm_probability=recipe.mask_rate,
            mask_replace_prob=recipe.mask_replace_rate,
            random_replace_prob=recipe.random_replace_rate,
        )
        self._mask_id = tokenizer.mask_token_id

    def __call__(self, conversation: EncodedConversation, draw: str) -> Row:
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(draw.encode()).digest()[:7]))
        self._masker.generator = generator
        others = (~conversation.is_assistant).int().unsqueeze(0)
        hidden, targets = self._masker.torch_mask_tokens(conversation.input_ids.clone().unsqueeze(0), others)
        input_ids, labels = hidden[0], targets[0]
        if not (labels != IGNORED).any():
            # A batch of short responses without any label would have no loss.
            spoken = conversation.is_assistant.nonzero().flatten()
            position = spoken[torch.randint(len(spoken), (1,), generator=generator)]
            labels[position] = conversation.input_ids[position]
            input_ids[position] = self._mask_id
        return {"input_ids": input_ids, "labels": labels}


def copy_assistant(conversation: EncodedConversation, _: str) -> Row:
    """The ablation: nothing is hidden, and each of the assistant's tokens is its own label."""
    labels = torch.where(conversation.is_assistant, conversation.input_ids, IGNORED)
    return {"input_ids": conversation.input_ids, "labels": labels}
