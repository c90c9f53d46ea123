"""Test that a request of a domain with its own temperature is divided by it, on every route."""

import math
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from tests.conftest import TOY_SPEC
from tests.service.conftest import Served, serve
from tinyrm.bundle import Bundle, write_bundle
from tinyrm.confidence import Temperature
from tinyrm.encoding import Truncation

OWN = {"temperature": 6.0, "log_temperature_std": 0.1, "temperature_one_order": None, "pairs": 90, "wrong": 20}
TEXTS = {"prompt": "What is 2 + 2?", "response_a": "2 + 2 = 4.", "response_b": "No idea."}
GROUP = {"prompt": TEXTS["prompt"], "responses": ["2 + 2 = 4.", "No idea.", "Five."]}
# The model reads the same, at the temperature of the default domain.
SAFETY, SAME_TEXT = {"domain": "safety"}, {"instruction": TOY_SPEC.instruction("safety")}


def changed(bundle: Path, folder: Path, **fields: Any) -> Settings:
    manifest = Bundle.open(bundle).manifest
    files = {name: bundle / name for name in manifest.files}
    write_bundle(folder, files, manifest.model_dump(exclude={"files", "revision"}) | {"temperature": 2.0} | fields)
    return Settings(model=folder)


def post(served: Served, path: str, **body: Any) -> Any:
    reply = served.client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


@pytest.mark.parametrize("kind", ["bundle_folder", "response_bundle_folder", "set_bundle_folder"])
def test_every_route_divides_by_the_temperature_of_the_domain(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    settings = changed(request.getfixturevalue(kind), tmp_path / "own", temperatures={"safety": OWN})
    with serve(settings) as served:
        general, own = (post(served, "/v1/compare", **TEXTS, **which)["margin"] for which in (SAME_TEXT, SAFETY))
        assert own == pytest.approx(general / 3, rel=1e-4)
        batch = post(served, "/v1/compare/batch", items=[TEXTS | SAME_TEXT, TEXTS | SAFETY])["results"]
        assert [one["margin"] for one in batch] == pytest.approx([general, own], rel=1e-4)
        matrices = [post(served, "/v1/rank", **GROUP, **which, win_matrix=True) for which in (SAME_TEXT, SAFETY)]
        before, after = (math.log(1 / matrix["win_matrix"][0][1] - 1) for matrix in matrices)
        assert after == pytest.approx(before / 3, rel=1e-3)
        card = served.client.get("/v1/models").json()["models"][0]
        assert (card["temperature"], card["temperatures"]) == (2.0, {"safety": 6.0})


def test_one_order_is_divided_by_the_temperature_that_fits_one(bundle_folder: Path, tmp_path: Path) -> None:
    """With `swap: auto`, too, where the first order was enough; whether it is, the temperature of both decides."""
    with serve(changed(bundle_folder, tmp_path / "before")) as served:
        before = {swap: post(served, "/v1/compare", **TEXTS, swap=swap)["margin"] for swap in ("off", "on")}
    own = OWN | {"temperature_one_order": 8.0}
    fields = {"temperature_one_order": 3.0, "temperatures": {"safety": own}}
    for share, sequences in ((0.99, 1), (1.01, 2)):
        auto = {"margin": share * abs(before["off"]), "pairs": 90, "saved": 0.5, "flips": 0.0, "max_flips": 0.005}
        with serve(changed(bundle_folder, tmp_path / f"own-{sequences}", auto_swap=auto, **fields)) as served:
            replies = {swap: post(served, "/v1/compare", **TEXTS, swap=swap) for swap in ("off", "on", "auto")}
            safety = post(served, "/v1/compare", **TEXTS, **SAFETY, swap="off")["margin"]
            same = post(served, "/v1/compare", **TEXTS, **SAME_TEXT, swap="off")["margin"]
            card = served.client.get("/v1/models").json()["models"][0]
        assert replies["off"]["margin"] == pytest.approx(before["off"] * 2 / 3, rel=1e-4)
        assert replies["on"]["margin"] == pytest.approx(before["on"], rel=1e-4)
        assert replies["auto"]["usage"]["sequences"] == sequences
        assert replies["auto"]["margin"] == replies["off" if sequences == 1 else "on"]["margin"]
        assert safety == pytest.approx(same * 3 / 8, rel=1e-4)
        assert (card["temperature_one_order"], card["temperatures_one_order"]) == (3.0, {"safety": 8.0})


@pytest.mark.parametrize("which", [{}, SAFETY], ids=["general", "safety"])
def test_each_order_is_given_as_it_would_be_alone(bundle_folder: Path, tmp_path: Path, which: dict[str, str]) -> None:
    fields = {"temperature_one_order": 3.0, "temperatures": {"safety": OWN | {"temperature_one_order": 8.0}}}
    exchanged = TEXTS | {"response_a": TEXTS["response_b"], "response_b": TEXTS["response_a"]}
    with serve(changed(bundle_folder, tmp_path / "own", **fields)) as served:
        both, one = (post(served, "/v1/compare", **TEXTS, **which, swap=swap) for swap in ("on", "off"))
        other = post(served, "/v1/compare", **exchanged, **which, swap="off")
        (item,) = post(served, "/v1/compare/batch", items=[TEXTS | which | {"swap": "on"}])["results"]
    assert one["orders"] == {"a_first": one["probability_a"], "b_first": None}
    assert both["orders"]["a_first"] == pytest.approx(one["probability_a"], abs=1e-6)
    assert both["orders"]["b_first"] == pytest.approx(other["probability_b"], abs=1e-6)
    assert both["orders"]["a_first"] != pytest.approx(both["orders"]["b_first"], abs=1e-4), "the model has a bias"
    assert item["orders"] == pytest.approx(both["orders"], abs=1e-5)


def test_log_odds_of_a_single_score_are_at_the_temperature_of_the_domain(pointwise: Served) -> None:
    scores = [pointwise.pipeline.make_score(3.0, Truncation(), 1, Temperature(value)) for value in (1.0, 4.0)]
    assert scores[1].log_odds == pytest.approx(scores[0].log_odds / 4)


def test_the_margin_of_swap_auto_stays_at_the_temperature_of_all_domains(bundle_folder: Path, tmp_path: Path) -> None:
    with serve(changed(bundle_folder, tmp_path / "first")) as served:
        first = abs(post(served, "/v1/compare", **TEXTS, **SAFETY, swap="off")["margin"])
    auto = {"margin": 0.9 * first, "pairs": 90, "saved": 0.5, "flips": 0.0, "max_flips": 0.005}
    with serve(changed(bundle_folder, tmp_path / "own", temperatures={"safety": OWN}, auto_swap=auto)) as served:
        assert post(served, "/v1/compare", **TEXTS, **SAFETY, swap="auto")["usage"]["sequences"] == 1
        assert post(served, "/v1/compare", **TEXTS, **SAFETY, swap="on")["usage"]["sequences"] == 2
