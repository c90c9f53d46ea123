"""Test that models of other projects are recognised by their files, and that what cannot be served is refused."""

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from export.recognition import Recognised, recognise
from export.rendering import find_template
from tests.conftest import Trained
from tests.support.checkpoints import CHATML, PUBLISHED, change_json, chatml_tokenizer, modernbert_tokenizer
from tinyrm.errors import InvalidInput, TinyRMError
from tinyrm.manifest import Head
from tinyrm.modernbert.files import fetch


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function: kind -> folder of its checkpoint, which is written once. Tests must not write into it."""
    folder = tmp_path_factory.mktemp("published")
    return cache(lambda kind: PUBLISHED[kind].write(folder / kind))


@pytest.fixture
def changed(published: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies a checkpoint and changes fields of one of its files."""

    def change(kind: str, file: str = "config.json", **fields: Any) -> Path:
        folder = tmp_path / "changed"
        if not folder.exists():
            shutil.copytree(published(kind), folder)
        if not (folder / file).exists():
            (folder / file).write_text("{}")
        change_json(folder / file, **fields)
        return folder

    return change


def known(folder: Path) -> Recognised:
    recognised = recognise("some/model", folder)
    assert recognised is not None
    return recognised


# Checkpoint -> class, library, where it is read, what is applied to its score, its template, its limit of tokens.
EXPECTED = {
    "bert": ("BertForSequenceClassification", "sentence-transformers", "first", "identity", "bert-pair"),
    "roberta": ("RobertaForSequenceClassification", "transformers", "first", "identity", "roberta-pair"),
    "xlm-roberta": ("XLMRobertaForSequenceClassification", "transformers", "first", "identity", "roberta-pair"),
    "electra": ("ElectraForSequenceClassification", "sentence-transformers", "first", "identity", "bert-pair"),
    "deberta": ("DebertaV2ForSequenceClassification", "transformers", "first", "identity", "bert-pair"),
    "gte": ("ModernBertForSequenceClassification", "sentence-transformers", "mean", "sigmoid", "bert-pair"),
    "chatml": ("ModernBertForSequenceClassification", "transformers", "first", "identity", "chatml"),
    "modular": ("ModernBertModel", "sentence-transformers", "first", "identity", "bert-pair"),
    "pairrm": ("DebertaV2PairRM", "llm-blender", "segments", "identity", "pairrm"),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_published_kinds_are_recognised(published: Callable[[str], Path], kind: str) -> None:
    found = known(published(kind))
    head = found.head
    template = find_template(kind, str(published(kind)), found, None)
    assert (found.architecture, found.library, head.read_at, head.activation, template.name) == EXPECTED[kind]
    assert template.reads == found.reads == ("pair" if kind == "pairrm" else "response")
    assert head.outputs == (2 if kind == "pairrm" else 1)
    assert found.architecture in found.describe()


def test_a_masked_lm_is_left_to_the_cloze(trained: Trained) -> None:
    assert recognise("base", trained.base) is None


IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"
# How the versions of sentence-transformers wrote what they apply to a score.
ACTIVATIONS = {
    "before 4": ("config.json", {"sbert_ce_default_activation_function": SIGMOID}, "sigmoid"),
    "4": ("config.json", {"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.0.1"}}, "identity"),
    "5.4": (
        "config_sentence_transformers.json",
        {"model_type": "CrossEncoder", "activation_fn": IDENTITY},
        "identity",
    ),
    "not named": ("config_sentence_transformers.json", {"model_type": "CrossEncoder"}, "sigmoid"),
}


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_the_activation_is_that_of_the_library(changed: Callable[..., Path], case: str) -> None:
    file, fields, activation = ACTIVATIONS[case]
    found = known(changed("roberta", file, **fields))
    assert (found.library, found.head.activation) == ("sentence-transformers", activation)


@pytest.mark.parametrize(
    ("pooling", "read_at"),
    [
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": None, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first"),
        ({"pooling_mode": None, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
    ],
)
def test_a_cross_encoder_of_modules_pools_as_its_files_say(
    changed: Callable[..., Path], pooling: dict[str, Any], read_at: str
) -> None:
    found = known(changed("modular", "1_Pooling/config.json", **pooling))
    assert found.head == Head(kind="score", read_at=read_at, outputs=1)
    assert [layer.describe() for layer in found.layers] == ["Dense GELU", "LayerNorm", "Dense"]


def test_the_limit_of_tokens_is_the_smallest_that_is_named(changed: Callable[..., Path]) -> None:
    assert known(changed("bert", "tokenizer_config.json", model_max_length=10**30)).max_tokens is None
    assert known(changed("bert", "tokenizer_config.json", model_max_length=512)).max_tokens == 512
    assert known(changed("bert", "sentence_bert_config.json", max_seq_length=256)).max_tokens == 256


THREE = {"0": "contradiction", "1": "entailment", "2": "neutral"}
ENTRY = {"idx": 5, "name": "5", "path": "5_Own"}
# Checkpoint, file, its changed fields, and what the refusal names.
REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "a decoder": (
        *("bert", "config.json", {"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"}),
        "is a LlamaForSequenceClassification, which is not supported; supported are masked LMs",
    ),
    "a language model": (
        *("bert", "config.json", {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}),
        "is a Qwen3ForCausalLM, which is a decoder; supported are",
    ),
    "code of its own": (
        *("bert", "config.json", {"architectures": ["NewForSequenceClassification"], "model_type": "new"}),
        "runs code of its own, which is never run; supported are",
    ),
    "no class": ("bert", "config.json", {"architectures": None}, "names no architecture"),
    "another type": ("bert", "config.json", {"model_type": "roberta"}, "of the type 'roberta'; supported are"),
    "three labels": (
        *("bert", "config.json", {"id2label": THREE}),
        "with 3 labels .contradiction, entailment, neutral., which are no score",
    ),
    "two labels": ("bert", "config.json", {"id2label": {"0": "NEGATIVE", "1": "POSITIVE"}}, "2 labels .NEGATIVE"),
    "labels that are only counted": ("bert", "config.json", {"id2label": None, "num_labels": 2}, "with 2 labels, "),
    "many problems": (
        *("deberta", "config.json", {"problem_type": "multi_label_classification"}),
        "for multi_label_classification, whose output is no score",
    ),
    "an activation": (
        *("bert", "config.json", {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Softmax"}),
        "applies torch.nn.modules.activation.Softmax to its score; supported are Identity and Sigmoid",
    ),
    "an activation of its own": (
        *("bert", "config.json", {"sbert_ce_default_activation_function": "mine.Sigmoid"}),
        "applies mine.Sigmoid",
    ),
    "a pooling": ("gte", "config.json", {"classifier_pooling": "max"}, "pools by 'max'; supported are cls and mean"),
    "a text before prompts": (
        *("modular", "config_sentence_transformers.json", {"prompts": {"query": "query: "}}),
        "puts a text of its own before every prompt",
    ),
    "a default prompt": (
        *("modular", "config_sentence_transformers.json", {"default_prompt_name": "query"}),
        "puts a text of its own before every prompt",
    ),
    "lowered texts": ("gte", "sentence_bert_config.json", {"do_lower_case": True}, "lowers its texts"),
    "an embedding model": (
        *("modular", "config_sentence_transformers.json", {"model_type": "SentenceTransformer"}),
        "embedding model .Transformer, Pooling, Dense, LayerNorm, Dense. on a ModernBertModel: nothing in it scores",
    ),
    "a pooling of modules": ("modular", "1_Pooling/config.json", {"pooling_mode": "max"}, "pools by max; supported"),
    "the last token": (
        *("modular", "1_Pooling/config.json", {"pooling_mode": "lasttoken"}),
        "reads its last token: supported are cls, and mean on a ModernBERT",
    ),
    "two poolings": ("modular", "1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, "pools by cls, mean"),
    "a sum past a layer": ("modular", "2_Dense/config.json", {"use_residual": True}, "use_residual"),
    "another activation of a layer": (
        *("modular", "2_Dense/config.json", {"activation_function": "mine.Swish"}),
        "2_Dense of some/model applies mine.Swish; supported are GELU",
    ),
    "widths that do not fit": ("modular", "2_Dense/config.json", {"in_features": 7}, "reads 7 numbers and gets 32"),
    "an activation in the last layer": (
        *("modular", "4_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Tanh"}),
        "applies Tanh in its last layer; supported is Identity",
    ),
    "two scores": ("modular", "4_Dense/config.json", {"out_features": 2}, "has 2 outputs; a score has one"),
    "a PairRM without its tokens": (
        *("bert", "config.json", {"architectures": ["DebertaV2PairRM"], "model_type": "deberta-v2"}),
        "is a DebertaV2PairRM without source_prefix_id, cand1_prefix_id, cand2_prefix_id",
    ),
    "a PairRM without its encoder": (
        *("bert", "config.json", {"ranker_type": "pairranker"}),
        "llm-blender/PairRM-hf has the same weights",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_its_files(changed: Callable[..., Path], case: str) -> None:
    kind, file, fields, reason = REFUSED[case]
    folder = changed(kind, file, **fields)
    if case == "code of its own":
        change_json(folder / "config.json", auto_map={"AutoModel": "modeling.New"})
    with pytest.raises(InvalidInput, match=reason):
        recognise("some/model", folder)


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ([0, 2, 1, 3, 4], "is made of Transformer, Dense, Pooling, LayerNorm, Dense; supported are Transformer, Pool"),
        ([0, 1, 4, 2, 3], "is made of Transformer, Pooling, Dense, Dense, LayerNorm; supported"),
        ([0, 1], "is made of Transformer, Pooling; supported"),
        ([1, 2], "is made of Pooling, Dense; supported"),
    ],
)
def test_modules_in_another_order_are_refused(changed: Callable[..., Path], order: list[int], reason: str) -> None:
    path = changed("modular") / "modules.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps([entries[i] for i in order]))
    with pytest.raises(InvalidInput, match=reason):
        recognise("some/model", path.parent)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"type": "mine.Own"}, "needs the module mine.Own, which is code of its own"),
        ({"type": "sentence_transformers.models.Normalize"}, "Dense, Normalize; supported are"),
        ({"type": "sentence_transformers.models.Dense", "path": "../elsewhere"}, "is no folder of the checkpoint"),
    ],
)
def test_modules_that_are_not_known_are_refused(
    changed: Callable[..., Path], entry: dict[str, str], reason: str
) -> None:
    path = changed("modular") / "modules.json"
    path.write_text(json.dumps([*json.loads(path.read_text()), ENTRY | entry]))
    with pytest.raises(InvalidInput, match=reason):
        recognise("some/model", path.parent)


@pytest.mark.parametrize("file", ["config.json", "modules.json", "config_sentence_transformers.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"], ids=["empty", "cut", "a list", "not UTF-8"])
def test_damaged_files_are_refused(changed: Callable[..., Path], file: str, content: bytes) -> None:
    folder = changed("modular")
    (folder / file).write_bytes(content)
    with pytest.raises(InvalidInput, match=f"{file} of some/model cannot be read"):
        recognise("some/model", folder)


def template_of(folder: Path, asked: str | None = None) -> str:
    return find_template("some/model", str(folder), known(folder), asked).name


def with_tokenizer(folder: Path, tokenizer: Any) -> Path:
    tokenizer.save_pretrained(folder)
    return folder


def test_a_reward_model_without_a_chat_template_needs_one_by_name(changed: Callable[..., Path]) -> None:
    folder = with_tokenizer(changed("chatml"), modernbert_tokenizer())
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InvalidInput, match=r"it is unknown how it reads .*--template bert-pair \| roberta-pair"):
        template_of(folder)
    assert template_of(folder, "bert-pair") == "bert-pair"
    assert template_of(folder, "human-assistant") == "human-assistant"


def test_a_template_whose_tokens_the_tokenizer_lacks_is_refused(changed: Callable[..., Path]) -> None:
    folder = with_tokenizer(changed("chatml"), modernbert_tokenizer())
    with pytest.raises(
        InvalidInput, match=r"lacks the special tokens <\|im_start\|>, <\|im_end\|>, which template chatml"
    ):
        template_of(folder, "chatml")


@pytest.mark.parametrize(
    ("chat_template", "template"),
    [
        # The default system message of a policy that TRL's users clone.
        ("{{'<|im_start|>system\nYou are Qwen.<|im_end|>\n'}}" + CHATML, None),
        (CHATML.replace("<|im_end|>' + '\\n'", "<|im_end|>'"), None),
        (CHATML.replace("{% for", "{% if messages[0].role == 'system' %}{{ 1 / 0 }}{% endif %}{% for", 1), None),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML, "chatml"),
        ("{{ messages.__class__.__mro__ }}", None),  # what a sandbox refuses
        (
            "{{ cls_token }}{% for m in messages %}{{ '\n\n' + {'system': 'System', 'user': 'Human', "
            "'assistant': 'Assistant'}[m.role] + ': ' + m.content }}{% endfor %}{{ sep_token }}",
            "human-assistant",
        ),
    ],
)
def test_a_chat_template_is_recognised_by_what_it_writes(
    changed: Callable[..., Path], chat_template: str, template: str | None
) -> None:
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = chat_template
    folder = with_tokenizer(changed("chatml"), tokenizer)
    if template:
        assert template_of(folder) == template
        return
    with pytest.raises(InvalidInput, match=r"--template|cannot encode a conversation"):
        template_of(folder)
    assert template_of(folder, "chatml") == "chatml"


def test_llama_3_is_recognised_where_the_tokenizer_has_a_first_token(changed: Callable[..., Path]) -> None:
    tokenizer = PUBLISHED["roberta"].tokenizer()
    tokenizer.add_tokens(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], special_tokens=True)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n'"
        " + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    )
    assert template_of(with_tokenizer(changed("roberta"), tokenizer)) == "llama-3"


def test_a_template_for_another_kind_of_reading_is_refused(published: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidInput, match="reads a response, and --template figure2 does not; bert-pair"):
        template_of(published("bert"), "figure2")


def test_the_users_template_is_taken_with_a_warning(
    published: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    assert template_of(published("chatml"), "bert-pair") == "bert-pair"
    assert "some/model itself writes sequences as chatml does, not as bert-pair" in caplog.text


def test_a_pairrm_without_its_tokens_is_refused(changed: Callable[..., Path]) -> None:
    folder = with_tokenizer(changed("pairrm"), PUBLISHED["deberta"].tokenizer())
    with pytest.raises(InvalidInput, match=r"lacks the special tokens <\|source\|>, <\|candidate1\|>"):
        template_of(folder)


def test_a_pairrm_that_is_read_at_other_tokens_is_refused(changed: Callable[..., Path]) -> None:
    with pytest.raises(InvalidInput, match=r"is read at other tokens than .*: <\|candidate1\|> is \d+, not 7"):
        template_of(changed("pairrm", cand1_prefix_id=7))


def test_a_tokenizer_without_a_separator_is_refused(changed: Callable[..., Path]) -> None:
    folder = changed("gte", "tokenizer_config.json", sep_token=None)
    with pytest.raises(TinyRMError, match=r"lacks .*SEP"):
        template_of(folder)


def test_the_folders_of_a_cross_encoders_modules_are_fetched(
    published: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot_download(model: str, *, allow_patterns: list[str], **_: Any) -> str:
        """Copy what the patterns name, as the hub's client does: `*` stands for slashes too."""
        source = published("modular")
        for file in source.rglob("*"):
            name = file.relative_to(source).as_posix()
            if file.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                ignored = _.get("ignore_patterns", [])
                if not any(fnmatch(name, pattern) for pattern in ignored):
                    (tmp_path / name).parent.mkdir(exist_ok=True)
                    shutil.copy(file, tmp_path / name)
                    asked.append(name)
        return str(tmp_path)

    monkeypatch.setattr("tinyrm.modernbert.files.snapshot_download", snapshot_download)
    folder = fetch.__wrapped__("some/model", None)
    assert {"modules.json", "model.safetensors", "2_Dense/model.safetensors", "1_Pooling/config.json"} <= set(asked)
    assert known(folder).layers
