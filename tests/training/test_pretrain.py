"""Test blocks of text, and a run that learns from them."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.conftest import SENTENCES
from tests.training.conftest import read_log
from tinyrm.bundle import sha256
from tinyrm.errors import InvalidInput
from tinyrm.modernbert.checkpoint import load_masked_lm, load_tokenizer
from tinyrm.spec import read_run
from training.data.source import Texts
from training.output import RECIPE_FILE
from training.recipe import NewModel, Optimization, PretrainRecipe
from training.stages.pretrain import Blocks, initial_model, pretrain

GEOMETRY = NewModel(num_hidden_layers=2, hidden_size=32, intermediate_size=48, num_attention_heads=2)


def recipe(folder: Path, tokenizer: PreTrainedTokenizerFast, texts: list[str], **changes: object) -> PretrainRecipe:
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer.save_pretrained(folder / "tokenizer")
    fields = {
        "output_dir": folder / "out",
        "tokenizer": str(folder / "tokenizer"),
        "model": GEOMETRY,
        "texts": (Texts(path="texts.jsonl", kind="documents"),),
        "block_tokens": 16,
        "optimization": Optimization(
            peak_lr=3e-3,
            epochs=100,
            max_steps=60,
            batch_size=16,
            micro_batch_size=16,
            precision="fp32",
            eval_steps=10,
            save_steps=40,
        ),
    }
    return PretrainRecipe.model_validate({"task": "pretrain", **fields, **changes})


def test_blocks_have_one_length_and_begin_with_cls(tokenizer: PreTrainedTokenizerFast) -> None:
    blocks = Blocks(SENTENCES, tokenizer, 16)
    assert len(blocks) > 3
    assert {len(blocks[i]["input_ids"]) for i in range(len(blocks))} == {16}
    assert {int(blocks[i]["input_ids"][0]) for i in range(len(blocks))} == {tokenizer.cls_token_id}


def test_blocks_contain_the_texts_in_order_separated_by_sep(tokenizer: PreTrainedTokenizerFast) -> None:
    blocks = Blocks(SENTENCES, tokenizer, 16)
    stream = [token for i in range(len(blocks)) for token in blocks[i]["input_ids"][1:].tolist()]
    whole = []
    for sentence in SENTENCES:
        whole += [*tokenizer(sentence, add_special_tokens=False)["input_ids"], tokenizer.sep_token_id]
    assert stream == whole[: len(stream)]
    assert len(whole) - len(stream) < 15, "less than one block is left over"


def test_loss_falls_and_the_checkpoint_loads(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    run = recipe(tmp_path, tokenizer, SENTENCES * 30)
    pretrain(run, tmp_path, resume=False)
    losses = [entry["eval_loss"] for entry in read_log(run.output_dir) if "eval_loss" in entry]
    # A guess among 384 tokens costs 5.95; knowing how frequent each is, about 4.
    assert losses[0] > 5
    assert losses[-1] < 4.5
    assert load_masked_lm(str(run.output_dir)).config.num_hidden_layers == 2
    assert load_tokenizer(str(run.output_dir))[1].mask == tokenizer.mask_token_id
    record = read_run(run.output_dir)
    assert record["data_sha256"] == {"texts.jsonl": sha256(tmp_path / "texts.jsonl")}, "the next stage's record has it"
    assert (record["recipe"]["task"], len(record["tokenizer_sha256"])) == ("pretrain", 64)


def test_a_resumed_run_continues_from_its_checkpoint(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    run = recipe(tmp_path, tokenizer, SENTENCES * 30)
    pretrain(run, tmp_path, resume=False)
    again = run.model_copy(update={"output_dir": tmp_path / "again"})
    shutil.copytree(run.output_dir / "checkpoint-40", again.output_dir / "checkpoint-40")
    shutil.copy(run.output_dir / RECIPE_FILE, again.output_dir)
    pretrain(again, tmp_path, resume=True)
    logged, resumed = ([e for e in read_log(r.output_dir) if "loss" in e and e["step"] > 40] for r in (run, again))
    assert [(e["step"], e["learning_rate"]) for e in resumed] == [(e["step"], e["learning_rate"]) for e in logged]
    # Not to the bit: the loader reads ahead, so the masks of the first two steps are drawn anew.
    assert resumed[-1]["loss"] == pytest.approx(logged[-1]["loss"], abs=0.1)


def test_too_little_text_for_validation_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="blocks of text are too few"):
        pretrain(recipe(tmp_path, tokenizer, SENTENCES), tmp_path, resume=False)


def test_new_model_has_the_geometry_and_the_tokenizers_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    model = initial_model(GEOMETRY.model_copy(update={"num_hidden_layers": 7}), tokenizer)
    kinds = [kind == "full_attention" for kind in model.config.layer_types]
    assert kinds == [True, False, False, True, False, False, True]
    assert model.config.vocab_size == len(tokenizer)
    assert (model.config.pad_token_id, model.config.cls_token_id) == (tokenizer.pad_token_id, tokenizer.cls_token_id)
    assert model.decoder.weight is model.get_input_embeddings().weight
