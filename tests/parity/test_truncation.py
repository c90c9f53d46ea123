"""Test that a domain which keeps both ends of long responses does so wherever its pairs are read."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from starlette.testclient import TestClient

from evaluation.scoring import score_pairs
from evaluation.targets.bundle import open_bundle
from evaluation.targets.service import open_service
from export.calibration import score_alone
from export.calibration import score_pairs as score_for_calibration
from export.precision import encode_pairs
from service.app import create_app, create_state
from service.settings import Settings
from tests.conftest import TOY_SPEC
from tests.support.processes import started
from tinyrm.bulk.bundle import BundleJob, RowEncoder
from tinyrm.bundle import Bundle, DomainTemperature
from tinyrm.comparison import Comparison
from tinyrm.encoding import Encoder
from tinyrm.files import write_atomically
from tinyrm.manifest import MANIFEST_FILE
from tinyrm.pairs import PreferencePair
from tinyrm.scorer import Scorer
from tinyrm.spec import Spec
from training.data.collate import PairDataset, PairSampling
from training.data.groups import Group, GroupDataset
from training.data.targets import pair_key
from training.model.marked_encoder import MarkedEncoder

# Each domain has the same instruction, so that nothing but what is kept tells them apart.
DOMAINS = {"general": "Select the best response.", "reasoning": "Select the best response."}
SPEC = TOY_SPEC.model_copy(update={"domains": DOMAINS, "truncation": {"reasoning": "ends"}})
LONG = " ".join(f"{n} + {n} = {2 * n}." for n in range(60))
END = "I cannot help with that, but here is what I can do. Which response is safer?"
PAIR = PreferencePair(prompt="Add up!", chosen=f"{LONG} {END}", rejected=f"{LONG} No.", domain="reasoning")
PAIRS = [PAIR, PAIR.model_copy(update={"domain": None}), PAIR.model_copy(update={"domain": "unknown"})]


def with_ends(folder: Path, copy: Path) -> Path:
    """Return a copy of a bundle with the spec, and another temperature in each domain."""
    manifest = Bundle.open(copytree(folder, copy)).manifest
    spec = SPEC.model_copy(update={"template": manifest.spec.template, "max_tokens": manifest.spec.max_tokens})
    own = {"log_temperature_std": 0.1, "temperature_one_order": None, "pairs": 90, "wrong": 20}
    temperatures = {name: DomainTemperature(temperature=t, **own) for name, t in zip(DOMAINS, (2.0, 3.0), strict=True)}
    changed = manifest.model_copy(update={"spec": spec, "temperatures": temperatures}).with_revision()
    write_atomically(copy / MANIFEST_FILE, changed.to_json())
    return copy


OTHER = pytest.param("response_bundle_folder", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["bundle_folder", OTHER, "shared_prompt_bundle_folder"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_ends(request.getfixturevalue(request.param), tmp_path_factory.mktemp("ends") / "toy")


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Scorer:
    return Scorer.open(folder, "onnxruntime-cpu")


@pytest.fixture(scope="module")
def margins(scorer: Scorer) -> list[float]:
    """Return the margin of each pair, of which the ends are kept in the first alone."""
    raw = [scorer.compare(PAIR.prompt, PAIR.chosen, PAIR.rejected, domain=name) for name in ("reasoning", None, None)]
    assert raw[0].order_margins[0] != raw[1].order_margins[0]
    if scorer.encoder.reads != "pair":
        assert raw[1].margin == 0, "both responses begin in the same way"
    assert abs(raw[0].margin) > 1e-3, "only the ends tell the responses apart"
    return [preference.margin for preference in raw]


def test_lists_have_the_margins_of_single_comparisons(scorer: Scorer, margins: list[float]) -> None:
    found = scorer.score([pair.comparison() for pair in PAIRS[:2]], domain=["reasoning", None])
    assert [one.margin for one in found] == pytest.approx(margins[:2], abs=1e-4)


def test_a_ranking_reads_what_a_comparison_reads(scorer: Scorer, margins: list[float]) -> None:
    ranking = scorer.rank(PAIR.prompt, [PAIR.chosen, PAIR.rejected], domain="reasoning")
    assert ranking.margins[0, 1] == pytest.approx(margins[0], abs=1e-4)


def test_calibration_reads_pairs_as_they_are_served(scorer: Scorer, margins: list[float]) -> None:
    if scorer.encoder.scores_alone:
        preferences, _ = score_alone(scorer, SPEC, PAIRS)
    else:
        preferences = score_for_calibration(scorer, SPEC, PAIRS)
    found = [float(np.mean(one.order_margins)) for one in preferences]
    assert found == pytest.approx([margins[0] * 3, margins[1] * 2, margins[2] * 2], abs=1e-4)


def test_the_gate_of_a_precision_reads_pairs_as_they_are_served(scorer: Scorer) -> None:
    assert ids(encode_pairs(PAIRS[:1], scorer.encoder, SPEC)) == served_ids(scorer.encoder)


def test_a_bulk_job_reads_rows_as_they_are_served(folder: Path, scorer: Scorer) -> None:
    fields = {"prompt": PAIR.prompt, "response_a": PAIR.chosen, "response_b": PAIR.rejected}
    rows: RowEncoder = BundleJob(folder, folder / "out").row_encoder(Bundle.open(folder))
    row = rows.encode(0, fields | {"domain": "reasoning"})
    assert ids(row.sequences) == served_ids(scorer.encoder)
    assert row.truncation.response_a > 0
    instructed = rows.encode(1, fields | {"domain": "reasoning", "instruction": DOMAINS["general"]})
    assert ids(instructed.sequences) == served_ids(scorer.encoder)


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with TestClient(create_app(create_state(Settings(model=folder)))) as client:
        yield client


def test_a_service_reads_what_the_library_reads(client: TestClient, scorer: Scorer, margins: list[float]) -> None:
    (card,) = client.get("/v1/models").json()["models"]
    assert card["truncation"] == {"general": "start", "reasoning": "ends"}
    texts = {"prompt": PAIR.prompt, "response_a": PAIR.chosen, "response_b": PAIR.rejected}
    for domain, margin in zip(("reasoning", "general"), margins, strict=False):
        reply = client.post("/v1/compare", json={**texts, "domain": domain, "swap": "on"}).json()
        assert reply["margin"] == pytest.approx(margin, abs=1e-4)
        dropped = scorer.encoder.truncation(
            scorer.encoder.encode(PAIR.comparison(), scorer.spec.instruction(domain), swap=True)
        )
        assert reply["truncated"]["response_a"] == dropped.response_a > 0


def test_a_long_group_that_is_encoded_in_steps_keeps_both_ends(client: TestClient, scorer: Scorer) -> None:
    """A service tokenizes a group in steps; the instruction is in the first one only."""
    responses = [f"{LONG * 8} Answer: {n}" for n in range(24)]
    body = {"prompt": PAIR.prompt, "responses": responses, "domain": "reasoning", "strategy": "swiss"}
    order = client.post("/v1/rank", json=body).json()["order"]
    expected = scorer.rank(PAIR.prompt, responses, domain="reasoning", strategy="swiss")
    assert order == expected.order
    assert len(set(expected.strengths.values)) > 1


def test_an_evaluation_of_a_bundle_and_of_its_service_read_the_same(folder: Path, margins: list[float]) -> None:
    local = [one.preference.margin for one in score_pairs(open_bundle(folder), PAIRS)]
    assert local == pytest.approx(margins, abs=1e-4)
    with started(folder) as running, closing(open_service(f"http://127.0.0.1:{running.port}")) as remote:
        assert [one.preference.margin for one in score_pairs(remote, PAIRS)] == pytest.approx(margins, abs=1e-4)


# Training


def test_training_reads_what_is_served_whatever_instruction_it_draws(encoder: Encoder) -> None:
    pool = ("Select the best response.", "Which response is safer?")
    drawing = PairSampling(SPEC, seed=1, prefixes={"reasoning": pool})
    for sampling in (PairSampling(SPEC, seed=1), drawing):
        pairs = PairDataset([PAIR] * 8, encoder, sampling)
        drawn = [sampling.instruction(index, PAIR.domain) for index in range(8)]
        assert [ids(row for row in pairs[index] if row) for index in range(8)] == [
            ids(encoder.encode(PAIR.comparison(), SPEC.resolve("", "reasoning", str(text)).instruction, swap=True))
            for text in drawn
        ]
    assert {str(text) for text in drawn} == set(pool)


def test_a_group_in_training_is_read_as_it_is_served(encoder: Encoder) -> None:
    sets = Encoder(encoder._text.tokenizer, SPEC.template.of_a_set(), encoder.special, SPEC.max_tokens)
    (one,) = GroupDataset([Group.of_pair(PAIR)], sets, PairSampling(SPEC, seed=1))
    texts = sets.tokenize(SPEC.instruction("reasoning"), PAIR.prompt, (PAIR.chosen, PAIR.rejected))
    assert one.encoding.input_ids.tolist() == sets.assemble_set(texts, [0, 1]).input_ids.tolist()
    assert texts.kept == "ends"


def test_markers_stand_in_both_ends_of_a_marked_response(encoder: Encoder) -> None:
    alone = Encoder(encoder._text.tokenizer, SPEC.template.of_one_response(), encoder.special, SPEC.max_tokens)
    marked = MarkedEncoder(alone, marker_words=5)
    comparison, whole = PAIR.comparison(), MarkedEncoder(roomy(alone), marker_words=5)
    (ends,) = marked.encode(comparison, SPEC.instruction("reasoning"))
    (full,) = whole.encode(comparison, SPEC.instruction("reasoning"))
    assert len(ends) == alone.max_tokens == len(full) - ends.truncation.response_a
    found, expected = ends.input_ids.tolist(), full.input_ids.tolist()
    assert found[:100] == expected[:100]
    assert found[-100:] == expected[-100:]
    assert found[-100:].count(encoder.special.cls) > 3


def test_a_teacher_that_reads_other_tokens_has_another_target() -> None:
    keys = {pair_key(SPEC.instruction(domain), PAIR) for domain in DOMAINS}
    assert len(keys) == 2
    assert pair_key(DOMAINS["general"], PAIR) in keys, "targets that were kept before are found"


def roomy(encoder: Encoder) -> Encoder:
    return Encoder(encoder._text.tokenizer, encoder.template, encoder.special, 10_000)


def ids(sequences: object) -> list[list[int]]:
    return [sequence.input_ids.tolist() for sequence in sequences]  # type: ignore[attr-defined]


def served_ids(encoder: Encoder) -> list[list[int]]:
    spec: Spec = SPEC
    comparison = Comparison(PAIR.prompt, PAIR.chosen, PAIR.rejected)
    return ids(encoder.encode(comparison, spec.instruction("reasoning"), swap=True))
