"""Merge specialists of the toy preference: one model serves both domains, and impossible merges are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from export.config import ExportOptions
from tests.conftest import SENTENCES
from tests.training.conftest import BETTER, SPEC, WORSE, Toy, toy_pairs
from tinyrm.encoding import Encoder
from tinyrm.engines.torch_checkpoint import TorchEngine
from tinyrm.errors import InvalidInput
from tinyrm.modernbert.adapter import load_with_adapter, merge
from tinyrm.modernbert.checkpoint import load_masked_lm, load_tokenizer
from tinyrm.pairs import PreferencePair, read_pairs
from tinyrm.scorer import Scorer
from tinyrm.spec import HELD_OUT_FILE, RUN_FILE, Spec
from training.model.specialists import TrainedModel
from training.recipe import Dora, MergeRecipe, NewModel, Specialist
from training.stages.cloze import train_cloze
from training.stages.merge import merge_specialists, state_of, unite_specs, write_held_out
from training.stages.pretrain import initial_model
from training.stages.tokenizer import train_bpe, wrap

STEPS = {"peak_lr": 1e-2, "max_steps": 60, "batch_size": 16, "micro_batch_size": 16, "warmup_ratio": 0.1}
CHAT = SPEC.model_copy(update={"domains": {"general": SPEC.domains["general"]}, "max_tokens": 110})
SAFETY = SPEC.model_copy(update={"domains": {"safety": SPEC.domains["safety"]}, "default_domain": "safety"})


@pytest.fixture(scope="module")
def specialists(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train `chat` (full weights) and `safety` (a DoRA adapter) from one base that was trained a little."""
    folder = tmp_path_factory.mktemp("specialists")
    start = toy.recipe(folder / "base", {**STEPS, "max_steps": 32}, loss="labels")
    train_cloze(start, toy.data, resume=False)
    base = {"model": str(folder / "base"), "loss": "labels"}
    little = STEPS | {"peak_lr": 5e-3, "max_steps": 40}
    train_cloze(toy.recipe(folder / "chat", little, spec=CHAT, **base), toy.data, resume=False)
    dora = Dora(rank=8, alpha=8)
    train_cloze(toy.recipe(folder / "safety", little, spec=SAFETY, dora=dora, **base), toy.data, resume=False)
    return {name: folder / name for name in ("base", "chat", "safety")}


def merge_recipe(trained: dict[str, Path], out: Path, method: str, **changes: Any) -> MergeRecipe:
    fields = {
        "task": "merge",
        "output_dir": out,
        "method": method,
        "specialists": [{"path": str(trained["chat"])}, {"path": str(trained["safety"])}],
        "base": None if method == "mean" else str(trained["base"]),
    }
    return MergeRecipe.model_validate({**fields, **changes})


def answers(folder: Path, domain: str, pairs: list[PreferencePair]) -> list[float]:
    """Return P(chosen is better) of each pair."""
    tokenizer, special = load_tokenizer(str(folder))
    spec = Spec.load(folder)
    encoder = Encoder(tokenizer, spec.template, special, spec.max_tokens)
    engine = TorchEngine(load_masked_lm(str(folder)), special, encoder.label_ids)
    instructions = [spec.instruction(domain)] * len(pairs)
    return [p.p_a for p in Scorer(encoder, engine, spec).score([pair.comparison() for pair in pairs], instructions)]


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("mean", {}),
        pytest.param("task_arithmetic", {"scale": 0.7}, marks=pytest.mark.slow),
        ("ties", {"density": 0.3}),
        pytest.param("dare", {"density": 0.5, "scale": 0.7}, marks=pytest.mark.slow),
    ],
)
def test_a_merged_model_is_right_in_both_domains(
    specialists: dict[str, Path], tmp_path: Path, method: str, changes: dict[str, Any]
) -> None:
    recipe = merge_recipe(specialists, tmp_path, method, **changes)
    merge_specialists(recipe)
    pairs = [pair.model_copy(update={"prompt": f"New {pair.prompt}"}) for pair in toy_pairs(18)]
    for domain in ("general", "safety"):
        merged, base = (np.array(answers(folder, domain, pairs)) for folder in (tmp_path, specialists["base"]))
        assert np.mean(merged > 0.5) > 0.9
        assert -np.log(merged).mean() < -np.log(base).mean() / 2, "what the specialists learned is in it"


def test_the_mean_is_of_merged_weights_with_the_tied_decoder_once(specialists: dict[str, Path], tmp_path: Path) -> None:
    merge_specialists(merge_recipe(specialists, tmp_path, "mean"))
    merged = load_masked_lm(str(tmp_path))
    assert merged.decoder.weight is merged.get_input_embeddings().weight
    chat = dict(load_masked_lm(str(specialists["chat"])).named_parameters())
    safety = merge(load_with_adapter(str(specialists["base"]), specialists["safety"]))
    names = set()
    for name, parameter in safety.named_parameters():
        torch.testing.assert_close(merged.get_parameter(name), (chat[name] + parameter) / 2)
        names.add(name)
    assert "decoder.weight" not in names
    assert names == set(state_of(merged))


def test_written_checkpoint_is_one_that_export_takes(specialists: dict[str, Path], tmp_path: Path) -> None:
    recipe = merge_recipe(specialists, tmp_path / "merged", "ties", density=0.4)
    merge_specialists(recipe)
    options = ExportOptions(model=str(recipe.output_dir), out=tmp_path / "bundle")
    options.refuse_other_base()
    assert options.spec().domains == SPEC.domains
    assert options.spec().max_tokens == 110, "the smallest budget that all were trained for"
    assert options.run()["recipe"]["method"] == "ties"
    assert options.calibration_pairs() == recipe.output_dir / HELD_OUT_FILE
    # Both specialists held out the same pairs of the same file: once each.
    assert read_pairs(recipe.output_dir / HELD_OUT_FILE) == read_pairs(specialists["chat"] / HELD_OUT_FILE)


def test_record_names_every_input_by_hash_and_how_it_was_made(specialists: dict[str, Path], tmp_path: Path) -> None:
    merge_specialists(merge_recipe(specialists, tmp_path, "dare", density=0.5, scale=0.5))
    record = json.loads((tmp_path / RUN_FILE).read_text())
    chat, safety = str(specialists["chat"]), str(specialists["safety"])
    assert record["coefficients"] == [1.0, 1.0]
    assert record["specialists_sha256"][chat] != record["specialists_sha256"][safety]
    assert record["specialists"][safety]["recipe"]["dora"]["rank"] == 8
    assert record["base_sha256"] == record["specialists"][chat]["base_sha256"]
    assert list(record["data_sha256"]) == ["pairs.jsonl"]


def test_the_same_seed_merges_to_the_same_weights(specialists: dict[str, Path], tmp_path: Path) -> None:
    def merged(name: str, seed: int) -> bytes:
        merge_specialists(merge_recipe(specialists, tmp_path / name, "dare", density=0.5, scale=0.5, seed=seed))
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert merged("one", 1) == merged("again", 1)
    assert merged("one", 1) != merged("other", 2)


def test_a_coefficient_of_one_and_nothing_else_gives_that_specialist(
    specialists: dict[str, Path], tmp_path: Path
) -> None:
    both = [
        {"path": str(specialists["chat"]), "coefficient": 1.0},
        {"path": str(specialists["safety"]), "coefficient": 0},
    ]
    merge_specialists(merge_recipe(specialists, tmp_path, "task_arithmetic", specialists=both, scale=1.0))
    merged, chat = load_masked_lm(str(tmp_path)), load_masked_lm(str(specialists["chat"]))
    for name, parameter in chat.named_parameters():
        torch.testing.assert_close(merged.get_parameter(name), parameter, atol=1e-6, rtol=0)


def test_specialists_that_split_otherwise_leave_no_held_out_pairs(
    specialists: dict[str, Path], toy: Toy, tmp_path: Path
) -> None:
    other = toy.recipe(tmp_path / "other", {"seed": 5}, spec=SAFETY)
    train_cloze(other, toy.data, resume=False)
    both = [{"path": str(specialists["chat"])}, {"path": str(tmp_path / "other")}]
    merge_specialists(merge_recipe(specialists, tmp_path / "out", "mean", specialists=both))
    assert not (tmp_path / "out" / HELD_OUT_FILE).exists()


def test_a_held_out_pair_with_a_line_separator_of_unicode_stays_one_pair(tmp_path: Path) -> None:
    pair = PreferencePair(prompt="One\u2028two\x85three", chosen="a", rejected="b")
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / HELD_OUT_FILE).write_text(pair.model_dump_json() + "\n", encoding="utf-8")
    run = {"recipe": {"optimization": {"seed": 1}, "held_out_fraction": 0.1}}
    (folder / RUN_FILE).write_text(json.dumps(run))
    write_held_out(tmp_path / "both.jsonl", [TrainedModel(Specialist(path=str(folder)))] * 2)
    assert read_pairs(tmp_path / "both.jsonl") == [pair]


def other_model(folder: Path, tokenizer: PreTrainedTokenizerFast, **changes: int) -> dict[str, str]:
    geometry = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2} | changes
    initial_model(NewModel.model_validate(geometry), tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SAFETY.save(folder)
    return {"path": str(folder)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intermediate_size": 64}, r"layers\.0\.mlp\.Wi\.weight is \[128, 32\] and \[96, 32\]"),
        ({"num_hidden_layers": 5}, r"only one of them has model\.layers\.4"),
    ],
)
def test_models_of_other_shapes_are_refused(
    specialists: dict[str, Path],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    changes: dict[str, int],
    message: str,
) -> None:
    other = other_model(tmp_path / "other", tokenizer, **changes)
    both = [{"path": str(specialists["chat"])}, other]
    with pytest.raises(InvalidInput, match=message):
        merge_specialists(merge_recipe(specialists, tmp_path / "out", "mean", specialists=both))
    assert not (tmp_path / "out").exists()


def test_models_of_other_vocabularies_are_refused(specialists: dict[str, Path], tmp_path: Path) -> None:
    # As many tokens, and other ones: the shapes would not tell.
    foreign = wrap(
        train_bpe([f"{BETTER} {WORSE} zebra quagga okapi {s[::-1]}" for s in SENTENCES * 20], vocab_size=384)
    )
    other = other_model(tmp_path / "other", foreign)
    both = [{"path": str(specialists["chat"])}, other]
    with pytest.raises(InvalidInput, match="another tokenizer"):
        merge_specialists(merge_recipe(specialists, tmp_path / "out", "mean", specialists=both))


@pytest.mark.parametrize("dora", [None, Dora(rank=2, alpha=2)], ids=["weights", "adapter"])
def test_a_model_with_a_head_is_not_merged(
    specialists: dict[str, Path], toy: Toy, tmp_path: Path, dora: Dora | None
) -> None:
    train_cloze(toy.recipe(tmp_path / "scores", head="pointwise", dora=dora), toy.data, resume=False)
    both = [{"path": str(specialists["chat"])}, {"path": str(tmp_path / "scores")}]
    with pytest.raises(InvalidInput, match="trained with head: pointwise; only cloze models are merged"):
        merge_specialists(merge_recipe(specialists, tmp_path / "out", "mean", specialists=both))


def test_domains_are_united_unless_they_contradict() -> None:
    assert unite_specs([CHAT, SAFETY], None).default_domain == "general"
    assert unite_specs([CHAT, SAFETY], "safety").domains == SPEC.domains
    with pytest.raises(InvalidInput, match="'safety' has two instructions"):
        unite_specs([SPEC, SAFETY.model_copy(update={"domains": {"safety": "Which is better?"}})], None)
    with pytest.raises(InvalidInput, match="'maths' is not among"):
        unite_specs([CHAT, SAFETY], "maths")


def test_merged_domains_keep_what_each_kept_of_long_responses() -> None:
    """A specialist of reasoning keeps both ends; the merged model must read that domain as it was trained."""
    ends = SAFETY.model_copy(update={"truncation": "ends"})
    united = unite_specs([CHAT, ends], None)
    assert {domain: united.kept(domain) for domain in united.domains} == {"general": "start", "safety": "ends"}
    assert unite_specs([CHAT, SAFETY], None).truncation == "start"
    with pytest.raises(InvalidInput, match="domain 'safety' has two truncations: start and ends"):
        unite_specs([SPEC, ends], None)


def test_an_adapter_on_other_weights_than_it_was_trained_on_is_refused(specialists: dict[str, Path], toy: Toy) -> None:
    with pytest.raises(InvalidInput, match="trained on other weights"):
        TrainedModel(Specialist(path=str(specialists["safety"]), base=str(toy.base))).load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "ties", "base": None}, "takes a base"),
        ({"method": "mean", "base": "b"}, "takes no base"),
        ({"method": "mean", "base": None, "scale": 2.0}, "no scale"),
        ({"method": "ties", "density": 0}, "density"),
        ({"method": "task_arithmetic"}, "set `scale`"),
        ({"method": "dare"}, "set `scale`"),
        ({"method": "ties", "specialists": [{"path": "a"}]}, "specialists"),
    ],
)
def test_an_invalid_merge_recipe_is_refused(changes: dict[str, Any], message: str) -> None:
    fields = {"task": "merge", "output_dir": "out", "base": "b", "specialists": [{"path": "a"}, {"path": "b"}]}
    with pytest.raises(ValidationError, match=message):
        MergeRecipe.model_validate({**fields, **changes})
