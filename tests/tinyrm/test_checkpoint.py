"""Test that weights which do not fit are refused by name, whatever the files are called, on every way in."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertForPreTraining,
    AutoModel,
    BertConfig,
    BertForPreTraining,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from evaluation.targets.checkpoint import open_checkpoint
from export.config import ExportOptions
from export.pipeline import export_bundle
from tests.conftest import TOY_SPEC, spread
from tinyrm.errors import InvalidInput, TiedWeightChanged
from tinyrm.modernbert.adapter import load_with_adapter, merge
from tinyrm.modernbert.checkpoint import load_masked_lm, load_tokenizer
from tinyrm.modernbert.files import checkpoint_folder, commit_of, fetch, weights_sha256
from tinyrm.modernbert.heads import load_head
from tinyrm.spec import RUN_FILE
from training.model.adapter import add_dora
from training.model.specialists import TrainedModel
from training.recipe import ClozeRecipe, Dora, NewModel, Specialist
from training.stages.cloze import learning_model
from training.stages.pretrain import initial_model

State = dict[str, Tensor]
FORMATS = ("single", "shards", "bin", "bin shards")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    geometry = NewModel(num_hidden_layers=2, hidden_size=16, intermediate_size=24, num_attention_heads=2)
    model = initial_model(geometry, tokenizer)
    spread(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    add_dora(load_masked_lm(str(base)), Dora(rank=2, alpha=4), frozen_layers=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    TOY_SPEC.save(folder)
    return folder


def write(state: State, folder: Path, kind: str) -> None:
    """Write weights as one file or as two shards with an index."""
    for old in (*folder.glob("model*.safetensors*"), *folder.glob("pytorch_model*")):
        old.unlink()
    stem, suffix = ("pytorch_model", "bin") if "bin" in kind else ("model", "safetensors")
    save = torch.save if "bin" in kind else lambda part, path: save_file(part, path, metadata={"format": "pt"})
    if "shards" not in kind:
        save(state, folder / f"{stem}.{suffix}")
        return
    weight_map = {}
    for number in (1, 2):
        part = {name: state[name] for name in sorted(state)[number - 1 :: 2]}
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def changed(source: Path, target: Path, change: Callable[[State], State], kind: str = "single") -> Path:
    shutil.copytree(source, target, dirs_exist_ok=True)
    if (source / "adapter_config.json").is_file():
        state = load_file(source / "adapter_model.safetensors")
        save_file(change(state), target / "adapter_model.safetensors")
    else:
        write(change(load_file(source / "model.safetensors")), target, kind)
    return target


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def renamed(name: str, other: str) -> Callable[[State], State]:
    return lambda state: {other if key == name else key: value for key, value in state.items()}


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


def added(name: str) -> Callable[[State], State]:
    return lambda state: {**state, name: torch.ones(16)}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_loads(base: Path, tmp_path: Path, kind: str) -> None:
    folder = changed(base, tmp_path / "model", dict, kind)
    for name, value in load_masked_lm(str(base)).state_dict().items():
        assert load_masked_lm(str(folder)).state_dict()[name].equal(value)


def test_every_weight_that_is_missing_or_has_another_name_is_refused(base: Path, tmp_path: Path) -> None:
    keys = load_file(base / "model.safetensors").keys()
    assert len(keys) == 17
    for key in keys:
        for number, change in enumerate((without(key), renamed(key, f"{key}_old"), renamed(key, f"old.{key}"))):
            folder = changed(base, tmp_path / "model", change, FORMATS[number])
            with pytest.raises(InvalidInput, match=rf"weights are missing: .*{key}"):
                load_masked_lm(str(folder))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (added("model.layers.2.mlp_norm.weight"), "1 belong to nothing: model.layers.2.mlp_norm.weight"),
        (added("final_norm.weight"), "under two names: final_norm.weight"),
        (added("head.norm.bias"), "head.norm.bias"),
        (prefixed("_orig_mod."), "save the model that was compiled"),
        (prefixed("module."), "save the model inside it"),
        (lambda state: state | {"head.norm.weight": torch.ones(15)}, r"head.norm.weight \[15\] instead of \[16\]"),
        (lambda state: state | {"decoder.weight": torch.ones(384, 16)}, "differ from the embedding"),
        (lambda state: {key: value for key, value in state.items() if key.startswith("model.")}, "new_head: true"),
    ],
)
def test_other_weights_are_refused(
    base: Path, tmp_path: Path, change: Callable[[State], State], reason: str, kind: str
) -> None:
    folder = changed(base, tmp_path / "model", change, kind)
    with pytest.raises(InvalidInput, match=reason):
        load_masked_lm(str(folder))


def test_parts_of_other_tasks_and_computed_tables_may_be_there(base: Path, tmp_path: Path) -> None:
    parts = ("model.rotary_emb.inv_freq", "pooler.dense.weight", "cls.seq_relationship.bias", "model.position_ids")
    folder = changed(base, tmp_path / "model", lambda state: state | {name: torch.ones(16) for name in parts})
    assert load_masked_lm(str(folder)).num_parameters() == load_masked_lm(str(base)).num_parameters()


SIZES = {
    "vocab_size": 100,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 66,
}


@pytest.mark.parametrize(
    "make",
    [
        lambda: BertForPreTraining(BertConfig(**SIZES)),
        lambda: AlbertForPreTraining(AlbertConfig(**SIZES, embedding_size=8)),
        lambda: RobertaForMaskedLM(RobertaConfig(**SIZES)),
        lambda: DebertaV2ForMaskedLM(DebertaV2Config(**SIZES)),
    ],
    ids=["BERT", "ALBERT", "RoBERTa", "DeBERTa"],
)
def test_published_families_load_as_they_are_saved(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    assert load_masked_lm(str(tmp_path)).num_parameters() > 0


@pytest.mark.parametrize("where", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1}', b"\x00" * 64], ids=["empty", "cut", "other", "zeros"])
def test_damaged_files_are_refused_in_one_line(base: Path, tmp_path: Path, where: str, content: bytes) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    (folder / where).write_bytes(content)
    with pytest.raises(InvalidInput) as refused:  # noqa: PT012 - one of both
        load_tokenizer(str(folder))
        load_masked_lm(str(folder))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_head_is_drawn_only_for_a_body_and_only_on_request(base: Path, tmp_path: Path) -> None:
    AutoModel.from_pretrained(base).save_pretrained(tmp_path / "body")
    with pytest.raises(InvalidInput, match=r"head.dense.weight.*new_head: true"):
        load_masked_lm(str(tmp_path / "body"))
    with pytest.raises(InvalidInput, match=r"head\.dense\.weight"):
        load_head("pair-cls", str(tmp_path / "body"))
    for loaded in (
        load_masked_lm(str(tmp_path / "body"), new_head=True),
        load_head("pair-cls", str(tmp_path / "body"), new_head=True),
    ):
        assert loaded.base_model.final_norm.weight.equal(load_masked_lm(str(base)).base_model.final_norm.weight)
    incomplete = changed(base, tmp_path / "less", without("model.final_norm.weight"))
    for load in (load_masked_lm, lambda model, **options: load_head("pair-cls", model, **options)):
        with pytest.raises(InvalidInput, match=r"model\.final_norm\.weight"):
            load(str(incomplete), new_head=True)


def test_a_recipe_says_whether_its_model_may_be_a_body(base: Path, tmp_path: Path) -> None:
    body, pairs = tmp_path / "body", [{"dataset": "jsonl", "path": "pairs.jsonl"}]
    AutoModel.from_pretrained(base).save_pretrained(body)
    fields = {"task": "cloze", "output_dir": tmp_path, "model": str(body), "spec": {}, "sources": pairs}
    for head in ("cloze", "pair-cls"):
        recipe = ClozeRecipe.model_validate(fields | {"head": head, "optimization": {"peak_lr": 1e-3}})
        with pytest.raises(InvalidInput, match="new_head: true"):
            learning_model(recipe)
        assert learning_model(recipe.model_copy(update={"new_head": True}))


def test_a_trained_classifier_needs_its_classifier(base: Path, tmp_path: Path) -> None:
    load_head("pair-cls", str(base)).save_pretrained(tmp_path / "trained")
    assert load_head("pair-cls", str(tmp_path / "trained")).classifier.weight.equal(
        load_file(tmp_path / "trained" / "model.safetensors")["classifier.weight"]
    )
    folder = changed(tmp_path / "trained", tmp_path / "less", without("classifier.bias"))
    with pytest.raises(InvalidInput, match=r"classifier\.bias"):
        load_head("pair-cls", str(folder))


def test_every_weight_of_an_adapter_counts(base: Path, adapter: Path, tmp_path: Path) -> None:
    keys = load_file(adapter / "adapter_model.safetensors").keys()
    assert len(keys) == 3 * 5
    for key in keys:
        changes = (without(key), renamed(key, key.replace("base_model.model.", "base_model.model._orig_mod.")))
        for change in changes:
            folder = changed(adapter, tmp_path / "adapter", change)
            with pytest.raises(InvalidInput, match=rf"does not fit its base: .*missing: .*{key}"):
                load_with_adapter(str(base), folder)
    with pytest.raises(InvalidInput, match="belong to nothing: extra"):
        load_with_adapter(str(base), changed(adapter, tmp_path / "adapter", added("extra")))


def test_an_adapter_in_a_pickle_is_read_as_strictly(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    state = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(state, folder / "adapter_model.bin")
    assert load_with_adapter(str(base), folder).get_base_model() is not None
    state.pop(min(state))
    torch.save(state, folder / "adapter_model.bin")
    with pytest.raises(InvalidInput, match="1 of its weights are missing"):
        load_with_adapter(str(base), folder)


class Harmful:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return pytest.fail, ("code of a pickle ran",)


def test_no_code_in_a_pickle_runs(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({"decoder.bias": Harmful()}, folder / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match="is damaged"):
        load_masked_lm(str(folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {key.replace("base_model.model.", "base_model.model._orig_mod."): state[key] for key in state},
        lambda state: {key.replace("base_model.model.", "base_model.model.module."): state[key] for key in state},
        lambda state: {key.replace("model.model.model", "model.model"): state[key] for key in state},
        lambda state: {key: state[key] for key in state if "magnitude" not in key},
        lambda state: {key: state[key] for key in state if "mlp" not in key},
        lambda state: {key: state[key][:1].contiguous() for key in state},
    ],
    ids=["compiled", "parallel", "of a body", "no magnitudes", "no MLP", "another rank"],
)
def test_an_adapter_that_does_not_fit_is_refused_on_every_way_in(
    base: Path, adapter: Path, tmp_path: Path, change: Callable[[State], State]
) -> None:
    folder = changed(adapter, tmp_path / "adapter", change)
    for enter in (
        lambda: export_bundle(ExportOptions(model=str(base), adapter=folder, out=tmp_path / "bundle")),
        lambda: open_checkpoint(folder),
        lambda: TrainedModel(Specialist(path=str(folder), base=str(base))).load(),
    ):
        with pytest.raises(InvalidInput, match=r"the adapter in .* (does not fit its base|cannot be loaded): "):
            enter()
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("change", [without("head.norm.weight"), prefixed("_orig_mod."), added("extra")])
def test_a_checkpoint_that_does_not_fit_is_refused_on_every_way_in(
    base: Path, tmp_path: Path, change: Callable[[State], State]
) -> None:
    folder = changed(base, tmp_path / "model", change)
    TOY_SPEC.save(folder)
    for enter in (
        lambda: export_bundle(ExportOptions(model=str(folder), out=tmp_path / "bundle")),
        lambda: open_checkpoint(folder),
        lambda: TrainedModel(Specialist(path=str(folder))).load(),
    ):
        with pytest.raises(InvalidInput, match="does not fit a ModernBertForMaskedLM"):
            enter()
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("options", "kind", "reason"),
    [
        ({"target_modules": ["decoder"]}, TiedWeightChanged, "changes decoder, .* train it without `decoder`"),
        ({"target_modules": ["tok_embeddings"]}, TiedWeightChanged, "changes model.embeddings.tok_embeddings"),
        ({"target_modules": ["Wi"], "trainable_token_indices": [5]}, TiedWeightChanged, "single tokens"),
        ({"target_modules": ["Wi"], "modules_to_save": ["decoder"]}, TiedWeightChanged, "changes decoder"),
        ({"target_modules": ["Wi"], "lora_bias": True}, InvalidInput, "the adapter cannot be merged: .*lora_bias"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused_in_its_own_words(
    base: Path, tmp_path: Path, options: dict[str, object], kind: type[Exception], reason: str
) -> None:
    get_peft_model(load_masked_lm(str(base)), LoraConfig(r=2, **options)).save_pretrained(tmp_path)
    with pytest.raises(kind, match=reason):
        merge(load_with_adapter(str(base), tmp_path))


def test_an_adapter_is_not_taken_for_a_model(adapter: Path) -> None:
    with pytest.raises(InvalidInput, match="is an adapter, not a model"):
        load_masked_lm(str(adapter))


@pytest.mark.parametrize("kind", FORMATS)
def test_an_adapter_of_another_base_is_refused_whatever_its_files(
    base: Path, adapter: Path, tmp_path: Path, kind: str
) -> None:
    own = changed(base, tmp_path / "own", dict, kind)
    other = changed(base, tmp_path / "other", lambda state: state | {"decoder.bias": torch.ones(384)}, kind)
    trained = shutil.copytree(adapter, tmp_path / "adapter")
    (trained / RUN_FILE).write_text(json.dumps({"base_sha256": weights_sha256(str(own))}))
    config = json.loads((trained / "adapter_config.json").read_text())
    (trained / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(other)}))
    ExportOptions(model=str(own), adapter=trained, out=tmp_path / "out").refuse_other_base()
    for enter in (
        ExportOptions(model=str(other), adapter=trained, out=tmp_path / "out").refuse_other_base,
        lambda: open_checkpoint(trained),
        lambda: TrainedModel(Specialist(path=str(trained))).base,
    ):
        with pytest.raises(InvalidInput, match="trained on other weights"):
            enter()


def test_a_folder_without_weights_or_with_a_lost_shard_has_no_hash(base: Path, tmp_path: Path) -> None:
    shards = changed(base, tmp_path / "shards", dict, "shards")
    (shards / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InvalidInput, match=r"lacks model-00002-of-00002\.safetensors"):
        weights_sha256(str(shards))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="holds no weights"):
        weights_sha256(str(tmp_path / "empty"))


@pytest.fixture
def hub(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the id of a model on the hub, which was fetched before; there is no network."""
    repository = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(base, repository / "snapshots" / COMMIT)
    for name in ("main", "v1"):
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    fetch.cache_clear()
    return "org/tiny"


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_hub_model_has_a_commit_and_a_hash(base: Path, hub: str, revision: str | None) -> None:
    assert commit_of(checkpoint_folder(hub, revision)) == COMMIT
    assert weights_sha256(hub, revision) == weights_sha256(str(base))
    assert load_masked_lm(hub, revision=revision).name_or_path == hub, "what is saved names the id, not a cache"
    assert load_tokenizer(hub, revision)[1] == load_tokenizer(str(base))[1]


def test_what_is_neither_a_folder_nor_on_the_hub_is_refused(base: Path, hub: str) -> None:
    for model, revision in ((hub, "v2"), ("org/none", None), ("a/b/c", None)):
        with pytest.raises(InvalidInput, match=f"{model} is not a folder here, and cannot be fetched"):
            load_masked_lm(model, revision=revision)
    with pytest.raises(InvalidInput, match="leave the revision out"):
        load_masked_lm(str(base), revision="v1")


def test_a_saved_model_does_not_say_that_its_head_is_sparse(base: Path, tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    shutil.copytree(base, sparse)
    config = json.loads((base / "config.json").read_text()) | {"sparse_prediction": True}
    (sparse / "config.json").write_text(json.dumps(config))
    model = load_masked_lm(str(sparse))
    assert not model.sparse_prediction
    model.save_pretrained(tmp_path / "saved")
    assert not json.loads((tmp_path / "saved" / "config.json").read_text()).get("sparse_prediction")
