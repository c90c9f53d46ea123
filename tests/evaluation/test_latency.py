"""The time of comparisons of one size: which pairs are timed, what is counted, and where it is written."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.card import markers
from evaluation.latency import Runner, Stopwatch, cpu_name, main, nearest
from tests.conftest import TOY_SPEC
from tests.support.scored_by_length import LengthEngine, response_scorer
from tinyrm.bundle import Bundle
from tinyrm.encoding import Encoder, Encoding
from tinyrm.pairs import PreferencePair

SHORT, MIDDLE, LONG = (PreferencePair(prompt="What?", chosen="red " * words, rejected="red") for words in (1, 10, 60))


@dataclass
class SlowEngine(LengthEngine):
    def run(self, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        time.sleep(0.02)
        return super().run(sequences)


def test_pairs_nearest_to_the_size_are_timed(encoder: Encoder) -> None:
    scorer = response_scorer(encoder, TOY_SPEC, LengthEngine())
    texts = encoder.tokenize("", MIDDLE.prompt, (MIDDLE.chosen, MIDDLE.rejected))
    size = len(texts.prompt) + sum(map(len, texts.responses))
    assert nearest([SHORT, MIDDLE, LONG], scorer, size, 1) == [MIDDLE]
    assert nearest([LONG, SHORT, MIDDLE], scorer, size, 2) == [MIDDLE, SHORT]


def test_the_time_of_the_engine_is_a_part_of_the_decision(encoder: Encoder) -> None:
    watch = Stopwatch(SlowEngine())
    runner = Runner("slow@1", replace(response_scorer(encoder, TOY_SPEC, LengthEngine()), engine=watch), watch)
    runner.decide(LONG)
    runner.forget()
    for pair in (SHORT, MIDDLE):
        runner.decide(pair)
    figures = runner.figures()
    assert figures["sequences"] == 2, "one for each response"
    assert figures["engine_ms"]["p50"] >= 20
    assert all(engine < decision for engine, decision in zip(runner.engine_s, runner.decision_s, strict=True))
    assert len(runner.engine_s) == 2


def test_the_command_times_two_bundles_and_writes_into_the_first(
    bundle_folder: Path, response_bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = shutil.copytree(bundle_folder, tmp_path / "bundle")
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(pair.model_dump_json() + "\n" for pair in (SHORT, MIDDLE, LONG)))
    words = [str(bundle), "--pairs", str(file), "--tokens", "20", "--count", "2", "--rounds", "2", "--record", "--card"]
    assert main([*words, "--against", str(response_bundle_folder)]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    one, other = printed["models"]
    assert (one["reads"], other["reads"], printed["pairs"]) == ("pair", "response", 2)
    assert printed["ratio"] == one["engine_ms"]["p50"] / other["engine_ms"]["p50"]
    manifest = Bundle.open(bundle).manifest
    assert manifest.evaluation["latency"] == printed
    card = (bundle / "README.md").read_text()
    assert f"| {manifest.identity} | pair | 2 |" in card
    (bundle / "README.md").write_text(markers("latency")[0])
    assert main(words) == 1
    file.write_text("")
    assert main(words) == 1
    assert "holds no pairs" in capsys.readouterr().err


def test_a_processor_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: Fast One\nprocessor\t: 1\nmodel name\t: Fast One\n"
    )
    assert cpu_name(tmp_path / "cpuinfo") == "Fast One"
    assert cpu_name(tmp_path / "absent")
