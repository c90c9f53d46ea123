"""Test conversations: their hidden tokens, and a run that learns the assistant's words."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from tests.training.conftest import Toy, read_log
from tinyrm.encoding import SpecialTokens
from tinyrm.errors import InvalidInput
from tinyrm.modernbert.checkpoint import load_masked_lm
from tinyrm.pairs import read_records
from tinyrm.plain_text import plain_text_tokenizer
from tinyrm.spec import RUN_FILE
from training.data.collate import IGNORED
from training.data.conversations import (
    Conversation,
    EncodedConversation,
    encode_conversation,
)
from training.data.split import split_by_opening
from training.output import RECIPE_FILE
from training.recipe import SftRecipe
from training.stages.sft import Conversations, MaskAssistant, copy_assistant, train_sft

NAMES = {"system": "System", "user": "Human", "assistant": "Assistant"}
LONG = "Which response is correct? " * 8


def talk(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.fixture
def recipe(toy: Toy, tmp_path: Path) -> SftRecipe:
    return sft_recipe(toy, tmp_path)


def sft_recipe(toy: Toy, folder: Path) -> SftRecipe:
    """Write conversations in which the assistant's sentence is always the same; return a recipe that learns them."""
    records = [talk(("user", f"Question {i}"), ("assistant", "The better option is choice 0.")) for i in range(60)]
    (folder / "talks.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    steps = {"peak_lr": 5e-3, "max_steps": 40, "batch_size": 8, "micro_batch_size": 4, "precision": "fp32"}
    fields = {"task": "sft", "output_dir": folder / "out", "model": str(toy.base), "conversations": ["talks.jsonl"]}
    optimization = {**steps, "epochs": 100, "eval_steps": 5, "save_steps": 25}
    return SftRecipe.model_validate({**fields, "held_out_fraction": 0.2, "optimization": optimization})


def test_passes_of_a_step_are_accumulated_alike_in_all_families(toy: Toy, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=600, max_position_embeddings=256, pad_token_id=3, **sizes, **dropout)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    for file in toy.base.glob("*token*"):
        shutil.copy(file, tmp_path / "bert")
    for base in (toy.base, tmp_path / "bert"):
        logs = []
        for size in (8, 2):
            folder = tmp_path / f"{base.name}-{size}"
            folder.mkdir()
            recipe = sft_recipe(toy, folder)
            optimization = recipe.optimization.model_copy(update={"micro_batch_size": size, "max_steps": 2})
            recipe = recipe.model_copy(
                update={"model": str(base), "optimization": optimization, "trainer": {"logging_steps": 1}}
            )
            train_sft(recipe, folder, resume=False)
            logs.append([entry for entry in read_log(recipe.output_dir) if "grad_norm" in entry])
        for whole, parts in zip(*logs, strict=True):
            assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-4), base
            assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-3), base


@pytest.mark.slow
def test_processes_that_load_data_hide_the_tokens_of_each_epoch(toy: Toy, tmp_path: Path) -> None:
    found = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        recipe = sft_recipe(toy, folder)
        optimization = recipe.optimization.model_copy(update={"max_steps": 14})  # into a third epoch
        fields = {"dataloader_num_workers": workers, "dataloader_persistent_workers": workers > 0}
        train_sft(recipe.model_copy(update={"optimization": optimization, "trainer": fields}), folder, resume=False)
        found.append(load_file(folder / "out" / "model.safetensors"))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=0, rtol=0, msg=name)


def encode(
    record: dict[str, Any], tokenizer: PreTrainedTokenizerFast, special: SpecialTokens, max_tokens: int = 200
) -> EncodedConversation | None:
    conversation = Conversation.model_validate(record)
    plain = plain_text_tokenizer(tokenizer.backend_tokenizer)
    return encode_conversation(conversation, plain, special, NAMES, max_tokens)


def hidden_text(encoded: EncodedConversation, tokenizer: PreTrainedTokenizerFast) -> str:
    return tokenizer.decode(encoded.input_ids[encoded.is_assistant])


def test_only_the_assistants_words_are_marked(tokenizer: PreTrainedTokenizerFast, special: SpecialTokens) -> None:
    record = talk(("user", "What is 2 + 2?"), ("assistant", "It is 4."), ("user", "Safe?"), ("assistant", "Yes."))
    encoded = encode(record, tokenizer, special)
    assert encoded is not None
    assert (int(encoded.input_ids[0]), int(encoded.input_ids[-1])) == (special.cls, special.sep)
    text = "Human: What is 2 + 2?\n\nAssistant: It is 4.\n\nHuman: Safe?\n\nAssistant: Yes."
    assert tokenizer.decode(encoded.input_ids[1:-1]) == text
    assert hidden_text(encoded, tokenizer) == " It is 4. Yes."


def test_text_after_the_assistants_last_word_is_omitted(
    tokenizer: PreTrainedTokenizerFast, special: SpecialTokens
) -> None:
    turns = (("user", "One"), ("assistant", "Two"))
    longer = encode(talk(*turns, ("user", "Three")), tokenizer, special)
    shorter = encode(talk(*turns), tokenizer, special)
    assert longer is not None
    assert shorter is not None
    assert longer.input_ids.equal(shorter.input_ids)
    assert encode(talk(("user", "Nobody answers")), tokenizer, special) is None


def test_a_long_conversation_loses_its_beginning(tokenizer: PreTrainedTokenizerFast, special: SpecialTokens) -> None:
    encoded = encode(talk(("user", LONG), ("assistant", "It is 4.")), tokenizer, special, max_tokens=20)
    assert encoded is not None
    assert len(encoded.input_ids) == len(encoded.is_assistant) == 20
    assert int(encoded.input_ids[0]) == special.cls
    assert hidden_text(encoded, tokenizer) == " It is 4."


def test_text_that_looks_like_a_special_token_stays_text(
    tokenizer: PreTrainedTokenizerFast, special: SpecialTokens
) -> None:
    encoded = encode(talk(("user", "Say [MASK]"), ("assistant", "[MASK] [SEP]")), tokenizer, special)
    assert encoded is not None
    assert not (encoded.input_ids == special.mask).any()
    assert (encoded.input_ids == special.sep).sum() == 1


def test_masks_hide_the_configured_share_of_the_assistants_tokens_only(
    recipe: SftRecipe, tokenizer: PreTrainedTokenizerFast, special: SpecialTokens
) -> None:
    encoded = encode(talk(("user", LONG), ("assistant", LONG)), tokenizer, special, max_tokens=5000)
    assert encoded is not None
    mask = MaskAssistant(recipe, tokenizer)
    rows = [mask(encoded, f"17:0:{i}") for i in range(300)]
    labels = torch.stack([row["labels"] for row in rows])
    ids = torch.stack([row["input_ids"] for row in rows])
    hidden = labels != IGNORED
    assert not hidden[:, ~encoded.is_assistant].any()
    assert hidden[:, encoded.is_assistant].float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert labels[hidden].equal(encoded.input_ids.expand_as(labels)[hidden])
    assert ids[~hidden].equal(encoded.input_ids.expand_as(ids)[~hidden])
    masked = (ids[hidden] == special.mask).float().mean().item()
    kept = (ids[hidden] == labels[hidden]).float().mean().item()
    assert masked == pytest.approx(0.8, abs=0.02)
    assert kept == pytest.approx(0.1, abs=0.02)


def test_a_short_response_has_a_hidden_token_in_every_draw(
    recipe: SftRecipe, tokenizer: PreTrainedTokenizerFast, special: SpecialTokens
) -> None:
    encoded = encode(talk(("user", "Well"), ("assistant", "0")), tokenizer, special)
    assert encoded is not None
    mask = MaskAssistant(recipe, tokenizer)
    rows = [mask(encoded, str(i)) for i in range(40)]
    assert all((row["labels"] != IGNORED).sum() >= 1 for row in rows)
    assert all((row["labels"] != IGNORED)[~encoded.is_assistant].sum() == 0 for row in rows)


def test_each_epoch_hides_other_tokens_and_a_repeated_epoch_the_same_ones(
    recipe: SftRecipe, tokenizer: PreTrainedTokenizerFast, special: SpecialTokens
) -> None:
    encoded = encode(talk(("user", LONG), ("assistant", LONG)), tokenizer, special)
    assert encoded is not None
    data = Conversations([encoded, encoded], MaskAssistant(recipe, tokenizer), seed=1)
    first = data[0]["labels"]
    assert not data[1]["labels"].equal(first)
    data.set_epoch(1)
    assert not data[0]["labels"].equal(first)
    data.set_epoch(0)
    assert data[0]["labels"].equal(first)


def test_the_copy_task_hides_nothing(tokenizer: PreTrainedTokenizerFast, special: SpecialTokens) -> None:
    encoded = encode(talk(("user", "One"), ("assistant", "Two")), tokenizer, special)
    assert encoded is not None
    row = copy_assistant(encoded, "any")
    assert row["input_ids"].equal(encoded.input_ids)
    assert row["labels"][encoded.is_assistant].equal(encoded.input_ids[encoded.is_assistant])
    assert (row["labels"][~encoded.is_assistant] == IGNORED).all()


@pytest.fixture(scope="module")
def finished(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> SftRecipe:
    """Return the recipe of a run that was never interrupted; its data are beside its output folder."""
    recipe = sft_recipe(toy, tmp_path_factory.mktemp("sft"))
    train_sft(recipe, recipe.output_dir.parent, resume=False)
    return recipe


def test_loss_falls_and_what_the_next_stage_needs_is_written(finished: SftRecipe) -> None:
    out = finished.output_dir
    losses = [entry["eval_loss"] for entry in read_log(out) if "eval_loss" in entry]
    assert losses[0] > 4
    assert losses[-1] < losses[0] / 2
    record = json.loads((out / RUN_FILE).read_text())
    assert record["held_out"]["eval_loss"] == losses[-1]
    talks = (out.parent / "talks.jsonl").read_bytes()
    assert record["data_sha256"] == {"talks.jsonl": hashlib.sha256(talks).hexdigest()}
    assert record["base_sha256"]
    assert load_masked_lm(str(out)).config.num_hidden_layers == 4
    assert (out / "tokenizer.json").is_file()


def test_the_copy_task_learns_to_repeat(recipe: SftRecipe, tmp_path: Path) -> None:
    copying = recipe.model_copy(update={"objective": "copy", "output_dir": tmp_path / "copy"})
    train_sft(copying, tmp_path, resume=False)
    losses = [entry["eval_loss"] for entry in read_log(copying.output_dir) if "eval_loss" in entry]
    assert losses[-1] < losses[0] / 4


def test_resumed_run_ends_as_the_uninterrupted_one(finished: SftRecipe, tmp_path: Path) -> None:
    again = finished.model_copy(update={"output_dir": tmp_path})
    shutil.copytree(finished.output_dir / "checkpoint-25", tmp_path / "checkpoint-25")
    shutil.copy(finished.output_dir / RECIPE_FILE, tmp_path)
    train_sft(again, finished.output_dir.parent, resume=True)
    assert min(entry["step"] for entry in read_log(tmp_path)) > 25
    one, other = (load_masked_lm(str(r.output_dir)) for r in (finished, again))
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), parameter, atol=1e-6, rtol=0)


def test_frozen_layers_stay(recipe: SftRecipe, toy: Toy, tmp_path: Path) -> None:
    short = recipe.optimization.model_copy(update={"max_steps": 2})
    train_sft(recipe.model_copy(update={"frozen_layers": 2, "optimization": short}), tmp_path, resume=False)
    before, after = load_masked_lm(str(toy.base)), load_masked_lm(str(recipe.output_dir))
    assert after.model.layers[1].mlp.Wi.weight.equal(before.model.layers[1].mlp.Wi.weight)
    assert not after.model.layers[2].mlp.Wi.weight.equal(before.model.layers[2].mlp.Wi.weight)


def test_branches_of_one_tree_are_held_out_together() -> None:
    conversations = [
        Conversation.model_validate(talk(("user", f"Opening {i % 20}"), ("assistant", f"Reply {i}")))
        for i in range(100)
    ]
    learn, held_out = split_by_opening(conversations, 0.3, seed=1)
    assert len(learn) + len(held_out) == 100
    openings = [{c.messages[0]["content"] for c in side} for side in (learn, held_out)]
    assert all(openings)
    assert not openings[0] & openings[1]


def test_a_line_that_is_not_a_conversation_is_named(tmp_path: Path) -> None:
    (tmp_path / "talks.jsonl").write_text(json.dumps(talk(("user", "a"))) + "\n" + json.dumps(talk(("narrator", "a"))))
    with pytest.raises(InvalidInput, match=r"line 2: messages: .*unknown role 'narrator'"):
        read_records(tmp_path / "talks.jsonl", Conversation)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": []}, "line 1: messages"),
        ({"messages": None}, "line 1: messages"),
        ({"messages": [{"role": "user", "content": None}]}, "line 1: messages"),
        ({"messages": [{"speaker": "user", "utterance": "a"}]}, "line 1: messages: .*the keys speaker, utterance"),
        ({"text": "a"}, "line 1: messages"),
    ],
)
def test_a_line_without_turns_is_named(record: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "talks.jsonl").write_text(json.dumps(record))
    with pytest.raises(InvalidInput, match=message):
        read_records(tmp_path / "talks.jsonl", Conversation)


def test_conversations_of_other_tools_are_read_like_ours() -> None:
    ours = Conversation.model_validate(
        talk(("system", "Be brief."), ("user", "What?"), ("user", "4"), ("assistant", "4."))
    )
    shared = [("system", "Be brief."), ("human", "What?"), ("observation", "4"), ("gpt", "4.")]
    chat: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": None},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
        {"role": "assistant", "content": "4.", "refusal": None},
    ]
    for record in ({"conversations": [{"from": n, "value": text} for n, text in shared]}, {"messages": chat}):
        assert Conversation.model_validate(record) == ours


def test_too_few_conversations_are_refused(recipe: SftRecipe, tmp_path: Path) -> None:
    (tmp_path / "talks.jsonl").write_text(json.dumps(talk(("user", "a"), ("assistant", "b"))))
    with pytest.raises(InvalidInput, match="1 conversations are too few"):
        train_sft(recipe, tmp_path, resume=False)


def test_shares_of_the_hidden_tokens_above_one_are_refused(recipe: SftRecipe) -> None:
    with pytest.raises(ValidationError, match="at most 1 together"):
        SftRecipe.model_validate({**recipe.model_dump(), "mask_replace_rate": 0.8, "random_replace_rate": 0.3})
    with pytest.raises(ValidationError, match="lacks system"):
        SftRecipe.model_validate({**recipe.model_dump(), "turn_names": {"user": "U", "assistant": "A"}})
