"""Test that a bundle, its checkpoint and its service give the same margins at the same cost."""

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from evaluation.benchmarks import rewardbench2
from evaluation.scoring import ScoredPair, score_pairs
from evaluation.target import Meter, Target
from evaluation.targets.bundle import open_bundle
from evaluation.targets.checkpoint import open_checkpoint
from evaluation.targets.service import open_service
from tests.conftest import TOY_SPEC, Trained
from tests.support.processes import Process, started
from tinyrm.bundle import Bundle, record_temperature
from tinyrm.chat import BLANK
from tinyrm.errors import InvalidInput
from tinyrm.flops import exact_flops, paper_flops
from tinyrm.manifest import Calibration, DomainTemperature
from tinyrm.negatives import made_pair
from tinyrm.pairs import PreferencePair
from tinyrm.scorer import Scorer
from tinyrm.spec import RUN_FILE

PAIRS = [
    PreferencePair(prompt=f"What is {n} + {n}?", chosen="4 " * n, rejected="5, or so", domain=domain)
    for n in range(1, 4)
    for domain in ("safety", None)
]


def answers(target: Target) -> list[ScoredPair]:
    return score_pairs(target, PAIRS)


def margins(scored: list[ScoredPair]) -> np.ndarray:
    return np.array([(*j.preference.order_margins, j.preference.margin) for j in scored])


@pytest.fixture(scope="module")
def warm(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bundle with a temperature other than 1, and others for its domains."""
    folder = shutil.copytree(bundle_folder, tmp_path_factory.mktemp("warm") / "toy")
    own = {"log_temperature_std": 0.1, "pairs": 90, "wrong": 20}
    temperatures = {"general": (4.0, 6.0), "safety": (1.5, 1.7)}
    domains = {
        name: DomainTemperature(temperature=both, temperature_one_order=one, **own)
        for name, (both, one) in temperatures.items()
    }
    of_all = Calibration(**own, held_out=False, chosen=("temperature",), temperature_one_order=3.5)
    record_temperature(folder, 2.5, of_all, domains)
    return folder


@pytest.fixture(scope="module")
def service(warm: Path) -> Iterator[Process]:
    with started(warm) as running:
        yield running


def test_the_cost_is_that_of_both_orders(bundle_folder: Path) -> None:
    target = open_bundle(bundle_folder)
    answers(target)
    manifest, encoder = Bundle.open(bundle_folder).manifest, Bundle.open(bundle_folder).encoder()
    lengths = [
        len(encoder.encode(p.comparison(), manifest.spec.instruction(p.domain, or_default=True))[0]) for p in PAIRS
    ]
    cost = target.cost
    assert (cost.pairs, cost.sequences) == (len(PAIRS), 2 * len(PAIRS))
    assert cost.text_tokens == pytest.approx(sum(lengths) / len(PAIRS))
    assert cost.tokens_per_pair == 2 * sum(lengths) / len(PAIRS)
    exact = 2 * sum(exact_flops(manifest.geometry, n) for n in lengths) / len(PAIRS) / 1e9
    assert cost.gflops_per_pair == pytest.approx(exact)
    paper = 2 * sum(paper_flops(manifest.parameters, manifest.geometry, n) for n in lengths) / len(PAIRS) / 1e9
    assert cost.paper_gflops_per_pair == pytest.approx(paper)
    assert cost.pairs_per_second > 0


@pytest.fixture
def remote(service: Process) -> Iterator[Target]:
    with closing(open_service(f"http://127.0.0.1:{service.port}")) as target:
        yield target


def test_a_service_gives_the_results_of_its_bundle(warm: Path, remote: Target) -> None:
    local = open_bundle(warm)
    assert remote.identity == local.identity
    assert margins(answers(remote)) == pytest.approx(margins(answers(local)), abs=1e-4)
    assert (remote.meter.sequences, remote.meter.tokens) == (local.meter.sequences, local.meter.tokens)
    assert remote.meter.exact_flops == pytest.approx(local.meter.exact_flops, rel=1e-3)
    assert remote.cost.paper_gflops_per_pair is None


def test_an_empty_response_reaches_a_service_as_a_blank(warm: Path, remote: Target) -> None:
    """The routes refuse an empty one; made-up pairs have some."""
    made = [made_pair(pair, "empty", "") for pair in PAIRS]
    blank = score_pairs(open_bundle(warm), [made_pair(pair, "blank", BLANK) for pair in PAIRS])
    np.testing.assert_allclose(margins(score_pairs(remote, made)), margins(blank), atol=1e-4)


def test_a_service_scores_responses_as_its_bundle_does(response_bundle_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(response_bundle_folder, tmp_path / "toy")
    record_temperature(folder, 2.5)
    pairs = [*PAIRS, PAIRS[0].model_copy(update={"rejected": "another one"})]
    with started(folder) as running, closing(open_service(f"http://127.0.0.1:{running.port}")) as remote:
        local = open_bundle(folder)
        found, expected = score_pairs(remote, pairs), score_pairs(local, pairs)
    assert remote.reads == "response"
    assert margins(found) == pytest.approx(margins(expected), abs=1e-4)
    assert (remote.meter.sequences, remote.meter.tokens) == (local.meter.sequences, local.meter.tokens)
    assert remote.meter.sequences == 2 * len(PAIRS) + 1, "the first pair's right response stands in two pairs"
    assert remote.meter.exact_flops == pytest.approx(local.meter.exact_flops, rel=1e-3)


def test_another_temperature_divides_margins(warm: Path, remote: Target) -> None:
    for target in (open_bundle(warm), remote):
        warm_one, warmer = (target.at(factor * target.scorer.temperature) for factor in (1, 2))
        assert margins(answers(warmer))[:, 2] == pytest.approx(margins(answers(warm_one))[:, 2] / 2, abs=1e-6)
        assert margins(answers(warmer))[:, :2] == pytest.approx(margins(answers(warm_one))[:, :2], abs=1e-6)


def test_a_checkpoint_gives_the_results_of_the_bundle_made_from_it(bundle_folder: Path, trained: Trained) -> None:
    """Use a DoRA adapter that names its own base."""
    target = open_checkpoint(trained.adapter, device="cpu")
    bundle = open_bundle(bundle_folder)
    assert target.spec == TOY_SPEC
    assert margins(answers(target)) == pytest.approx(margins(answers(bundle)), abs=1e-3)
    assert target.meter.exact_flops == bundle.meter.exact_flops
    assert target.scorer.temperature == 1


def test_long_lists_are_scored_in_parts(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = margins(answers(open_bundle(bundle_folder)))
    monkeypatch.setattr("evaluation.target.PART", 4)
    target = open_bundle(bundle_folder)
    assert margins(answers(target)) == pytest.approx(whole, abs=1e-5)
    assert target.meter.pairs == len(PAIRS)


def test_a_folder_without_a_spec_is_not_a_checkpoint(trained: Trained) -> None:
    with pytest.raises(InvalidInput, match=r"cloze\.json"):
        open_checkpoint(trained.base)


def test_a_head_that_has_no_weights_is_not_drawn_at_random(trained: Trained, tmp_path: Path) -> None:
    """Use the adapter of a cloze under the record of another head."""
    folder = shutil.copytree(trained.adapter, tmp_path / "head")
    (folder / RUN_FILE).write_text(json.dumps({"recipe": {"head": "pair-cls"}}))
    with pytest.raises(InvalidInput, match="has the classifier of a model that was trained with head: pair-cls"):
        open_checkpoint(folder)


def test_a_head_that_is_not_served_is_refused_by_name(trained: Trained, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.adapter, tmp_path / "head")
    (folder / RUN_FILE).write_text(json.dumps({"recipe": {"head": "tokens"}}))
    with pytest.raises(InvalidInput, match="trained with head: tokens; cloze, pair-cls, pair-mean, pointwise, set are"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "fixture", ["response_bundle_folder", pytest.param("pair_cls_bundle_folder", marks=pytest.mark.slow)]
)
def test_a_trained_head_gives_the_results_of_its_bundle(fixture: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    bundle, checkpoint = open_bundle(folder), open_checkpoint(folder.parent / "trained", device="cpu")
    expected, found = answers(bundle), answers(checkpoint)
    assert checkpoint.reads == bundle.reads
    assert [j.preference.order_margins for j in found] == [
        pytest.approx(j.preference.order_margins, abs=1e-3) for j in expected
    ]
    assert np.ptp([j.preference.margin for j in found]) > 0.01
    assert (checkpoint.meter.sequences, checkpoint.meter.tokens) == (bundle.meter.sequences, bundle.meter.tokens)


def test_each_response_is_scored_once_by_a_bundle(response_bundle_folder: Path) -> None:
    """Two pairs of each prompt: under two instructions, so that no response of PAIRS occurs twice."""
    target = open_bundle(response_bundle_folder)
    score_pairs(target, [*PAIRS, *PAIRS])
    cost, encoder, spec = target.cost, Bundle.open(response_bundle_folder).encoder(), target.spec
    lengths = [
        len(encoder.encode_one(spec.instruction(p.domain, or_default=True), p.prompt, response))
        for p in PAIRS
        for response in (p.chosen, p.rejected)
    ]
    assert (cost.pairs, cost.sequences) == (2 * len(PAIRS), 2 * len(PAIRS))
    assert cost.tokens_per_pair == sum(lengths) / (2 * len(PAIRS))
    assert cost.text_tokens == pytest.approx(2 * np.mean(lengths))


@pytest.mark.slow
def test_a_bundle_that_reads_sets_reads_a_pair_or_a_group_once(set_bundle_folder: Path) -> None:
    target, scorer = open_bundle(set_bundle_folder), Scorer.open(set_bundle_folder)
    scored = score_pairs(target, PAIRS)
    assert (target.reads, target.cost.pairs, target.cost.sequences) == ("set", len(PAIRS), len(PAIRS))
    instructions = [target.spec.instruction(pair.domain, or_default=True) for pair in PAIRS]
    direct = scorer.score([pair.comparison() for pair in PAIRS], instructions)
    assert [j.preference.margin for j in scored] == pytest.approx([one.margin for one in direct], abs=1e-4)
    assert {len(j.preference.order_margins) for j in scored} == {1}
    assert target.cost.text_tokens == pytest.approx(target.cost.tokens_per_pair)
    target.meter.reset()
    responses = ["2 + 2 = 4.", "no", "four, I think", "5"]
    (group,) = target.score_groups([("Which is best?", "2 + 2?", responses)])
    assert (target.cost.pairs, target.cost.sequences) == (6, 1)
    (scores,) = scorer.score_groups([("Which is best?", "2 + 2?", responses)])
    for (i, j), preference in group.items():
        assert preference.margin == pytest.approx((scores[i] - scores[j]) / scorer.temperature, abs=1e-4)
    row = rewardbench2.RewardBench2Row(
        id="1", prompt="p", subset="Focus", chosen=("yes " * 4,), rejected=("no", "b b", "c")
    )
    target.meter.reset()
    (ranked,) = rewardbench2.compare_all(target, [row])
    assert target.meter.sequences == 1
    (scores,) = scorer.score_groups([(target.spec.instruction(None), "p", row.responses)])
    np.testing.assert_allclose(ranked.scores, (scores - scores.mean()) / scorer.temperature, atol=1e-4)


def test_responses_that_share_a_prompt_are_read_with_it_once(shared_prompt_bundle_folder: Path) -> None:
    target, scorer = open_bundle(shared_prompt_bundle_folder), Scorer.open(shared_prompt_bundle_folder)
    same = [PAIRS[0], PAIRS[0].model_copy(update={"rejected": "another one"})]
    scored = score_pairs(target, same)
    assert (target.reads, target.meter.sequences) == ("set", 1), "three responses of one prompt"
    direct = [scorer.compare(pair.prompt, pair.chosen, pair.rejected, domain=pair.domain).margin for pair in same]
    assert [j.preference.margin for j in scored] == pytest.approx(direct, abs=1e-4)


@pytest.mark.parametrize(
    "fixture", [pytest.param("set_bundle_folder", marks=pytest.mark.slow), "shared_prompt_bundle_folder"]
)
def test_a_service_reads_sets_as_its_bundle_does(fixture: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    groups = [("Which is best?", "2 + 2?", ["2 + 2 = 4.", "no", "four, I think"])]
    with started(folder) as running, closing(open_service(f"http://127.0.0.1:{running.port}")) as remote:
        local = open_bundle(folder)
        assert remote.reads == local.reads == "set"
        assert margins(answers(remote)) == pytest.approx(margins(answers(local)), abs=1e-4)
        (found,), (expected,) = remote.score_groups(groups), local.score_groups(groups)
        for pair, preference in expected.items():
            assert found[pair].margin == pytest.approx(preference.margin, abs=1e-4)
    assert (remote.meter.sequences, remote.meter.tokens) == (local.meter.sequences, local.meter.tokens)
    assert remote.meter.exact_flops == pytest.approx(local.meter.exact_flops, rel=1e-3)


def test_a_meter_resets_its_counts_and_keeps_unknown_costs_unknown() -> None:
    meter = Meter(pairs=1, sequences=2, tokens=2, exact_flops=3, paper_flops=None, seconds=4)
    meter.reset()
    assert meter == Meter(paper_flops=None)
