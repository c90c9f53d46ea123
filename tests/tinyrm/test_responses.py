"""Test bundles that score responses one by one: exact under a swap, O(n), and what they refuse."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.conftest import TOY_SPEC
from tinyrm.bundle import Bundle
from tinyrm.comparison import Comparison
from tinyrm.encoding import Encoder, Encoding
from tinyrm.errors import InvalidInput
from tinyrm.modernbert.heads import load_head
from tinyrm.ranking import rank_scores, sigmoid
from tinyrm.scorer import Scorer

PROMPT, RESPONSES = "What is 2 + 2?", ["2 + 2 = 4.", "2 + 2 = 5.", "I cannot help with that.", "2 + 2 = 4."]


@pytest.fixture(scope="module")
def scorer(response_bundle_folder: Path) -> Scorer:
    return Scorer.open(response_bundle_folder, "onnxruntime-cpu")


def test_the_manifest_records_what_is_read_and_the_scale_of_the_scores(response_bundle_folder: Path) -> None:
    manifest = Bundle.open(response_bundle_folder).manifest
    assert (manifest.schema_version, manifest.reads) == (3, "response")
    assert (manifest.head.kind, manifest.head.read_at, manifest.head.outputs) == ("score", "first", 1)
    assert manifest.architecture == "ModernBertForSequenceClassification"
    assert (manifest.label_ids, manifest.auto_swap) == (None, None)
    assert manifest.score_scale is not None
    assert manifest.score_scale.responses == 24


def test_scores_are_those_of_the_trained_classifier(response_bundle_folder: Path, scorer: Scorer) -> None:
    model = load_head("pointwise", str(response_bundle_folder.parent / "trained")).eval()
    instruction = TOY_SPEC.instruction()
    with torch.inference_mode():
        expected = [
            model(torch.from_numpy(scorer.encoder.encode_one(instruction, PROMPT, text).input_ids)[None]).logits.item()
            for text in RESPONSES
        ]
    np.testing.assert_allclose(scorer.score_responses(PROMPT, RESPONSES), expected, atol=1e-4)
    assert np.ptp(expected) > 0.01, "the toy tells responses apart"


def test_a_swap_flips_the_margin_exactly(scorer: Scorer) -> None:
    one, other = scorer.compare(PROMPT, *RESPONSES[:2]), scorer.compare(PROMPT, *RESPONSES[1::-1], swap=False)
    assert one.margin == -other.margin != 0
    assert (one.p_a, len(one.order_margins)) == (other.p_b, 1)
    assert scorer.compare(PROMPT, RESPONSES[0], RESPONSES[3]).preferred == "tie"


def test_a_ranking_scores_each_response_once(scorer: Scorer) -> None:
    ran: list[int] = []

    class Counting:
        info = scorer.engine.info

        def run(self, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
            ran.append(len(sequences))
            return scorer.engine.run(sequences)

    ranking = replace(scorer, engine=Counting()).rank(PROMPT, RESPONSES)
    assert sum(ran) == len(RESPONSES)
    scores = scorer.score_responses(PROMPT, RESPONSES)
    np.testing.assert_allclose(ranking.strengths.values, (scores - scores.mean()) / scorer.temperature)
    assert ranking.order == np.argsort(-scores, kind="stable").tolist()
    margin = scorer.compare(PROMPT, RESPONSES[0], RESPONSES[2]).margin
    assert ranking.margins[0, 2] == pytest.approx(margin)


def test_equal_responses_of_many_comparisons_are_scored_once(scorer: Scorer) -> None:
    comparisons = [Comparison(PROMPT, a, b) for a in RESPONSES for b in RESPONSES]
    texts = [("i", PROMPT, text) for text in RESPONSES]
    assert scorer.score_texts(texts)[0] == scorer.score_texts(texts)[3]
    margins = np.array([p.margin for p in scorer.score(comparisons)]).reshape(4, 4)
    np.testing.assert_array_equal(margins, -margins.T)


def test_strengths_of_scores_are_exact_also_where_probabilities_saturate() -> None:
    ranking = rank_scores(np.array([300.0, 0.0, -60.0]), temperature=2.0, ranked=2)
    np.testing.assert_allclose(ranking.strengths.values, [75, -75])
    np.testing.assert_allclose(ranking.probabilities[0, 1], sigmoid(np.array(150.0)))
    assert np.isfinite(ranking.strengths.standard_errors).all()
    offset, plain = (rank_scores(np.array([1.0, 2.0, 4.0]) + by, 1.0).strengths for by in (90.0, 0.0))
    np.testing.assert_allclose(offset.standard_errors, plain.standard_errors)
    assert rank_scores(np.array([1.0, 2.0, 3.0]), 1.0).cycle_rate == 0


@pytest.mark.slow
def test_a_pair_head_is_read_at_its_first_token(pair_cls_bundle_folder: Path) -> None:
    manifest = Bundle.open(pair_cls_bundle_folder).manifest
    assert (manifest.reads, manifest.head.read_at) == ("pair", "first")
    scorer = Scorer.open(pair_cls_bundle_folder, "onnxruntime-cpu")
    assert len(scorer.compare(PROMPT, *RESPONSES[:2]).order_margins) == 2
    with pytest.raises(InvalidInput, match="none is read alone"):
        scorer.score_responses(PROMPT, RESPONSES)


def test_an_instruction_without_a_place_is_refused(encoder: Encoder) -> None:
    alone = encoder.template.of_one_response()
    bare = alone.model_copy(update={"segments": tuple(s for s in alone.segments if "instruction" not in s)})
    spec = TOY_SPEC.model_copy(update={"template": bare})
    assert spec.resolve(PROMPT).prompt == PROMPT
    with pytest.raises(InvalidInput, match="reads no instruction"):
        spec.resolve(PROMPT, instruction="Be brief.")
