"""Test that published sets are read as pairs from their published schemas."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from datasets import Dataset
from pydantic import ValidationError

from tests.training import published
from tests.training.published import jsonl, oasst2_row, parquet, pku_row, skywork_row, webgpt_row
from tinyrm.errors import InvalidInput
from tinyrm.hub import dataset_commit
from tinyrm.pairs import PreferencePair
from training.data.cleaning import pairs_sha256
from training.data.mixture import load, load_all, load_conversations
from training.data.source import Source, published_pairs

TRAIN = "data/train-00000-of-00001.parquet"


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use an empty cache and no network, so that absent data are an error."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def source(name: str, **fields: Any) -> Source:
    return Source.model_validate({"dataset": name, **fields})


def texts(pairs: list[PreferencePair]) -> list[tuple[str, str, str]]:
    return [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]


SKYWORK = [
    skywork_row("helpsteer2", "What is it?", "A cat.", "A dog."),
    skywork_row("offsetbias", "Say hello.", "Hello.", "HELLO!!!"),
    skywork_row("wildguard", "Build a bomb.", "No.", "Sure."),
    skywork_row("magpie_pro_llama3.1", "2 + 2?", "4", "5"),
    skywork_row("magpie_ultra", "And 3?", "7", "8", "2 + 2?", "4"),
    skywork_row("magpie_pro", "3 + 3?", "6", "7"),
    skywork_row("magpie_air", "4 + 4?", "8", "9"),
]


def skywork(data: Path, rows: list[dict[str, Any]] = SKYWORK) -> None:
    parquet(rows, published.SKYWORK, data / "skywork" / TRAIN)


@pytest.mark.parametrize(
    ("part", "prompts", "domain"),
    [
        ("chat", {"What is it?"}, {"chat"}),
        ("safety", {"Say hello.", "Build a bomb."}, {"safety"}),
        (
            "reasoning",
            {"2 + 2?", "Human: 2 + 2?\n\nAssistant: 4\n\nHuman: And 3?", "3 + 3?", "4 + 4?"},
            {"reasoning"},
        ),
        ("offsetbias", {"Say hello."}, {"safety"}),
    ],
)
def test_skywork_is_split_by_source(tmp_path: Path, part: str, prompts: set[str], domain: set[str]) -> None:
    skywork(tmp_path)
    pairs = load(source("skywork", part=part), tmp_path).pairs
    assert {pair.prompt for pair in pairs} == prompts
    assert {pair.domain for pair in pairs} == domain


def test_the_shares_of_skywork_are_the_published_ones() -> None:
    counts = [published_pairs(source("skywork", part=part)) for part in ("chat", "safety", "reasoning", None)]
    assert counts == [7_221, 15_213, 54_582, 77_016]
    assert published_pairs(source("hh-rlhf")) == 160_800
    assert published_pairs(source("hh-rlhf", part="harmless-base", max_pairs=1000)) == 1000
    assert published_pairs(source("pku-saferlhf", part="better")) == 26_900
    assert published_pairs(source("webgpt")) == 14_300
    assert published_pairs(source("oasst2")) is None


def test_offsetbias_is_shared_with_chat(tmp_path: Path) -> None:
    """Count the same pair in two domains as two pairs, and twice in one domain as a repetition."""
    skywork(tmp_path)
    sources = [source("skywork", part="safety"), source("skywork", part="offsetbias", domain="chat")]
    mixture = load_all([*sources, source("skywork", part="offsetbias", domain="safety")], tmp_path)
    assert sorted(str(p.domain) for p in mixture.loaded.pairs if p.subset == "skywork:offsetbias") == ["chat", "safety"]
    assert mixture.loaded.dropped == {"duplicate": 1}
    assert list(mixture.parts) == ["skywork:safety", "skywork:offsetbias as chat", "skywork:offsetbias as safety"]


def test_an_unknown_source_is_refused(tmp_path: Path) -> None:
    skywork(tmp_path, [skywork_row("magpie_max", "a", "b", "c")])
    with pytest.raises(InvalidInput, match="magpie_max"):
        load(source("skywork"), tmp_path)


def test_dialogues_that_differ_or_end_too_early_are_counted(tmp_path: Path) -> None:
    parted = skywork_row("helpsteer2", "One?", "a", "b")
    parted["rejected"] = skywork_row("helpsteer2", "Two?", "a", "b")["rejected"]
    unanswered = skywork_row("helpsteer2", "Three?", "a", "b")
    unanswered["chosen"] = unanswered["chosen"][:1]
    skywork(tmp_path, [*SKYWORK[:1], parted, unanswered])
    loaded = load(source("skywork", part="chat"), tmp_path)
    assert loaded.dropped == {"mismatch": 2}
    assert loaded.read == 3


def test_an_odd_row_of_a_set_is_dropped_alone(tmp_path: Path) -> None:
    missing = skywork_row("helpsteer2", "Two?", "a", "b") | {"chosen": None}
    null = skywork_row("helpsteer2", "Three?", "a", "b")
    null["rejected"][1]["content"] = None
    tool = skywork_row("helpsteer2", "Four?", "a", "b", "And before?", "A call.")
    for turns in (tool["chosen"], tool["rejected"]):
        turns[1:2] = [turns[1], {"role": "tool", "content": "4"}, {"role": "assistant", "content": "So."}]
    skywork(tmp_path, [*SKYWORK[:1], missing, null, tool])
    loaded = load(source("skywork", part="chat"), tmp_path)
    assert loaded.dropped == {"empty": 2}
    assert len(loaded.pairs) == 2
    assert "Human: 4" in loaded.pairs[1].prompt


@pytest.mark.parametrize(
    ("name", "features", "good", "odd"),
    [
        ("pku-saferlhf", published.PKU, pku_row("A?", ("x", "y"), safer=0, better=0), {"prompt": None}),
        ("pku-saferlhf", published.PKU, pku_row("A?", ("x", "y"), safer=0, better=0), {"response_0": None}),
        ("pku-saferlhf", published.PKU, pku_row("A?", ("x", "y"), safer=0, better=0), {"safer_response_id": None}),
        ("webgpt", published.WEBGPT, webgpt_row("A?", ("x", "y"), 1.0), {"answer_1": None}),
        ("webgpt", published.WEBGPT, webgpt_row("A?", ("x", "y"), 1.0), {"score_0": None}),
        ("webgpt", published.WEBGPT, webgpt_row("A?", ("x", "y"), 1.0), {"question": None}),
        ("skywork", published.SKYWORK, SKYWORK[0], {"chosen": None}),
        ("skywork", published.SKYWORK, SKYWORK[0], {"rejected": [{"role": "robot", "content": "x"}]}),
    ],
)
def test_null_in_one_row_drops_that_row(
    tmp_path: Path, name: str, features: Any, good: dict[str, Any], odd: dict[str, Any]
) -> None:
    parquet([good, good | odd], features, tmp_path / name / TRAIN)
    part = "without-citations" if name == "webgpt" else None
    loaded = load(source(name, part=part), tmp_path)
    assert len(loaded.pairs) == 1
    assert sum(loaded.dropped.values()) == 1


@pytest.mark.parametrize("odd", [{"role": None}, {"text": None}])
def test_null_in_one_message_leaves_out_what_hangs_on_it(tmp_path: Path, odd: dict[str, Any]) -> None:
    rows = [
        oasst2_row("q0", None, "Hello?"),
        oasst2_row("a1", "q0", "best", 0),
        oasst2_row("a2", "q0", "worse", 1),
        oasst2_row("a3", "q0", "odd", 2) | odd,
    ]
    parquet(rows, published.OASST2, tmp_path / "oasst2" / TRAIN)
    assert texts(load(source("oasst2"), tmp_path).pairs) == [("Hello?", "best", "worse")]


def test_a_set_with_other_keys_is_refused_with_them(tmp_path: Path) -> None:
    turns = [{"speaker": "user", "utterance": "Hi"}, {"speaker": "assistant", "utterance": "Hello"}]
    jsonl([{"chosen": turns, "rejected": turns, "source": "helpsteer2"}], tmp_path / "skywork.jsonl")
    with pytest.raises(InvalidInput, match="the keys speaker, utterance"):
        load(source("skywork"), tmp_path)


def test_a_file_of_our_own_may_hold_conversations(tmp_path: Path) -> None:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    chosen, rejected = ([*asked, {"role": "assistant", "content": text}] for text in ("Because.", "No."))
    rows = [
        {"prompt": "Why?", "chosen": chosen, "rejected": rejected, "domain": "chat"},
        {"prompt": None, "chosen": chosen, "rejected": rejected},
        {"prompt": "How?", "chosen": chosen, "rejected": rejected},
        {"instruction": "Who?", "chosen_response": "He.", "rejected_response": "She."},
    ]
    jsonl(rows, tmp_path / "own.jsonl")
    loaded = load(source("jsonl", path="own.jsonl"), tmp_path)
    assert texts(loaded.pairs) == [
        ("System: Be brief.\n\nHuman: Why?", "Because.", "No."),
        ("Who?", "He.", "She."),
    ]
    assert loaded.dropped == {"empty": 1, "mismatch": 1}


def test_indentation_of_a_response_stays(tmp_path: Path) -> None:
    skywork(tmp_path, [skywork_row("magpie_pro", "Go on:", "    return 1", "return 1")])
    assert texts(load(source("skywork"), tmp_path).pairs) == [("Go on:", "    return 1", "return 1")]


WEBGPT = [
    webgpt_row("Why?", ("Because [1].", "No idea."), 0.5),
    webgpt_row("How?", ("Badly.", "Well [2, 3]."), -0.25),
    webgpt_row("When?", ("Now.", "Later."), 0.0),
]


def test_webgpt_drops_ties_and_reads_the_sign_of_the_score(tmp_path: Path) -> None:
    parquet(WEBGPT, published.WEBGPT, tmp_path / "webgpt/default/train/0000.parquet")
    loaded = load(source("webgpt"), tmp_path)
    assert texts(loaded.pairs) == [("Why?", "Because [1].", "No idea."), ("How?", "Well [2, 3].", "Badly.")]
    assert loaded.dropped == {"tie": 1}
    assert {(p.domain, p.subset) for p in loaded.pairs} == {("chat", "webgpt")}


def test_webgpt_without_citations(tmp_path: Path) -> None:
    jsonl(WEBGPT, tmp_path / "webgpt.jsonl")
    pairs = load(source("webgpt", part="without-citations"), tmp_path).pairs
    assert [pair.chosen for pair in pairs] == ["Because.", "Well."]


def hh_row(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": f"{prompt}\n\nAssistant: {chosen}", "rejected": f"{prompt}\n\nAssistant: {rejected}"}


def hh(data: Path) -> None:
    folder = data / "hh-rlhf"
    dialogue = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye"
    jsonl([hh_row(dialogue, "See you.", "What?")], folder / "helpful-base/train.jsonl.gz")
    jsonl([hh_row("\n\nHuman: Steal?", "No.", "Yes.")], folder / "harmless-base/train.jsonl.gz")
    jsonl([hh_row("\n\nHuman: Test?", "No.", "Yes.")], folder / "harmless-base/test.jsonl.gz")
    attempt = {"transcript": "\n\nHuman: Bad\n\nAssistant: No", "min_harmlessness_score_transcript": 1.0, "rating": 2.0}
    jsonl([attempt], folder / "red-team-attempts/red_team_attempts.jsonl.gz")


def test_hh_splits_at_the_last_response_without_red_team_attempts_and_test_rows(tmp_path: Path) -> None:
    hh(tmp_path)
    loaded = load(source("hh-rlhf"), tmp_path)
    assert texts(loaded.pairs) == [
        ("Steal?", "No.", "Yes."),
        ("Human: Hi\n\nAssistant: Hello\n\nHuman: Bye", "See you.", "What?"),
    ]
    assert [pair.subset for pair in loaded.pairs] == ["hh-rlhf:harmless-base", "hh-rlhf:helpful-base"]
    assert [pair.domain for pair in loaded.pairs] == ["safety", "chat"]
    assert loaded.dropped == {}


def test_hh_by_folder_and_in_one_file(tmp_path: Path) -> None:
    hh(tmp_path)
    assert [p.chosen for p in load(source("hh-rlhf", part="helpful-base"), tmp_path).pairs] == ["See you."]
    with pytest.raises(InvalidInput, match="helpful-online"):
        load(source("hh-rlhf", part="helpful-online"), tmp_path)
    jsonl([hh_row("\n\nHuman: One?", "a", "b")], tmp_path / "flat.jsonl")
    assert len(load(source("hh-rlhf", path="flat.jsonl"), tmp_path).pairs) == 1
    with pytest.raises(InvalidInput, match="has none of the folders"):
        load(source("hh-rlhf", path="flat.jsonl", part="helpful-base"), tmp_path)


def test_pku_by_safety_and_by_quality(tmp_path: Path) -> None:
    rows = [pku_row("Poison?", ("No.", "Yes, this."), safer=0, better=1)]
    rows.append(pku_row("Neither?", ("a", "b"), safer=-1, better=1))
    parquet(rows, published.PKU, tmp_path / "pku-saferlhf.parquet")
    loaded = load(source("pku-saferlhf"), tmp_path)
    safer = loaded.pairs
    better = load(source("pku-saferlhf", part="better"), tmp_path).pairs
    assert texts(safer) == [("Poison?", "No.", "Yes, this.")]
    assert texts(better) == [("Poison?", "Yes, this.", "No."), ("Neither?", "b", "a")]
    assert loaded.dropped == {"tie": 1}
    assert safer[0].domain == "safety"


OASST2 = [
    oasst2_row("q0", None, "Hello?"),
    oasst2_row("a1", "q0", "best", rank=0),
    oasst2_row("a2", "q0", "middle", rank=1),
    oasst2_row("a3", "q0", "worst", rank=2),
    oasst2_row("a4", "q0", "never ranked"),
    oasst2_row("a5", "q0", "removed", rank=3, deleted=True),
    oasst2_row("a6", "q0", "spam", rank=4, review_result=False),
    oasst2_row("q1", "a1", "And then?"),
    oasst2_row("a7", "q1", "as good", rank=0),
    oasst2_row("a8", "q1", "as bad", rank=0),
    oasst2_row("q2", "gone", "Lost"),
    oasst2_row("a9", "q2", "x", rank=0),
    oasst2_row("a10", "q2", "y", rank=1),
    oasst2_row("q3", None, "Hola?", lang="es"),
    oasst2_row("a11", "q3", "si", rank=1, lang="es"),
    oasst2_row("a12", "q3", "no", rank=0, lang="es"),
]


def test_oasst2_pairs_ranked_siblings(tmp_path: Path) -> None:
    parquet(OASST2, published.OASST2, tmp_path / "oasst2" / TRAIN)
    loaded = load(source("oasst2"), tmp_path)
    assert texts(loaded.pairs) == [
        ("Hello?", "best", "middle"),
        ("Hello?", "best", "worst"),
        ("Hello?", "middle", "worst"),
        ("Hola?", "no", "si"),
    ]
    assert loaded.dropped == {"tie": 1, "unlinked": 1}
    assert {p.subset for p in load(source("oasst2", part="es"), tmp_path).pairs} == {"oasst2:es"}


def test_oasst2_conversations_end_with_a_response_and_have_no_gap(tmp_path: Path) -> None:
    parquet(OASST2, published.OASST2, tmp_path / "oasst2" / TRAIN)
    threads = load_conversations(source("oasst2", part="en"), tmp_path)
    contents = [[turn["content"] for turn in thread] for thread in threads]
    assert contents == [
        ["Hello?", "middle"],
        ["Hello?", "worst"],
        ["Hello?", "never ranked"],
        ["Hello?", "best", "And then?", "as good"],
        ["Hello?", "best", "And then?", "as bad"],
    ]
    assert [turn["role"] for turn in threads[-1]] == ["user", "assistant", "user", "assistant"]
    with pytest.raises(InvalidInput, match="oasst2"):
        load_conversations(source("webgpt"), tmp_path)


def test_our_own_files_keep_domain_and_subset(tmp_path: Path) -> None:
    record = {"prompt": "p", "chosen": "c", "rejected": "r", "domain": "safety", "subset": "s"}
    jsonl([record], tmp_path / "own.jsonl.gz")
    (pair,) = load(source("jsonl", path="own.jsonl.gz"), tmp_path).pairs
    assert pair == PreferencePair(**record)
    (other,) = load(source("jsonl", path="own.jsonl.gz", domain="chat"), tmp_path).pairs
    assert (other.domain, other.subset) == ("chat", "s")


def test_a_record_that_is_no_pair_is_named(tmp_path: Path) -> None:
    jsonl([{"prompt": "p", "chosen": "c", "rejected": "r"}, {"prompt": "p", "chosen": 3}], tmp_path / "own.jsonl")
    with pytest.raises(InvalidInput, match=r"line 2: rejected is missing.*the keys prompt, chosen"):
        load(source("jsonl", path="own.jsonl"), tmp_path)


def test_a_part_of_a_file_of_ours_is_a_domain(tmp_path: Path) -> None:
    records = [
        {"prompt": f"{n}?", "chosen": "c", "rejected": "r", "domain": ("chat", "safety")[n % 2]} for n in range(4)
    ]
    jsonl([*records, {"prompt": "5?", "chosen": "c", "rejected": "r"}], tmp_path / "own.jsonl")
    part = source("jsonl", path="own.jsonl", part="safety")
    assert part.name == "jsonl:own.jsonl, safety"
    assert [pair.prompt for pair in load(part, tmp_path).pairs] == ["1?", "3?"]
    with pytest.raises(InvalidInput, match=r"own\.jsonl, saftey gives no pairs"):
        load(source("jsonl", path="own.jsonl", part="saftey"), tmp_path)


def test_another_schema_is_refused_with_both_named(tmp_path: Path) -> None:
    parquet(WEBGPT, published.WEBGPT, tmp_path / "pku-saferlhf" / TRAIN)
    with pytest.raises(InvalidInput, match=r"no prompt, response_0.*columns are question"):
        load(source("pku-saferlhf"), tmp_path)


def test_an_unavailable_set_names_the_path_for_a_copy(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"PKU-Alignment/PKU-SafeRLHF-30K cannot be had.*pku-saferlhf"):
        load(source("pku-saferlhf"), tmp_path)
    with pytest.raises(InvalidInput, match="nowhere does not exist"):
        load(source("webgpt", path="nowhere"), tmp_path)
    (tmp_path / "webgpt").mkdir()
    with pytest.raises(InvalidInput, match=r"has no \.parquet, \.jsonl, \.json file"):
        load(source("webgpt"), tmp_path)
    (tmp_path / "skywork.parquet").write_bytes(b"no parquet")
    with pytest.raises(InvalidInput, match=r"skywork\.parquet cannot be read"):
        load(source("skywork"), tmp_path)


HUB = {
    "skywork": ("Skywork/Skywork-Reward-Preference-80K-v0.2", None, None),
    "webgpt": ("openai/webgpt_comparisons", ["default/train/*.parquet"], "refs/convert/parquet"),
    "pku-saferlhf": ("PKU-Alignment/PKU-SafeRLHF-30K", None, None),
    "oasst2": ("OpenAssistant/oasst2", None, None),
}
ROWS: dict[str, Any] = {
    "skywork": (SKYWORK, published.SKYWORK),
    "webgpt": (WEBGPT, published.WEBGPT),
    "pku-saferlhf": ([pku_row("a", ("b", "c"), safer=1, better=1)], published.PKU),
    "oasst2": (OASST2, published.OASST2),
}


@pytest.mark.parametrize("name", HUB)
def test_the_published_set_is_requested_from_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = []

    def load_dataset(path: str, *, data_files: Any, revision: Any, split: str) -> Dataset:
        requested.append((path, data_files, revision))
        assert split == "train"
        rows, features = ROWS[name]
        return Dataset.from_list(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load(source(name), tmp_path).pairs
    assert requested == [HUB[name]]


def test_each_folder_of_hh_except_the_attempts_is_requested_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[str] = []

    def load_dataset(path: str, *, data_files: list[str], **_: Any) -> Dataset:
        requested.extend(f"{path}/{file}" for file in data_files)
        return Dataset.from_list([hh_row(f"\n\nHuman: {data_files}", "a", "b")])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load(source("hh-rlhf"), tmp_path).pairs) == 4
    folders = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
    assert requested == [f"Anthropic/hh-rlhf/{folder}/train.jsonl.gz" for folder in folders]


def with_nothing(row: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the row with None at a path such as question.full_text."""
    key, _, rest = path.partition(".")
    return row | {key: with_nothing(row[key], rest) if rest else None}


@pytest.mark.parametrize(
    ("name", "column", "reason"),
    [
        ("webgpt", "question", "empty"),
        ("webgpt", "question.full_text", "empty"),
        ("webgpt", "answer_0", "empty"),
        ("webgpt", "score_0", "tie"),
        ("webgpt", "score_1", "tie"),
        ("pku-saferlhf", "prompt", "empty"),
        ("pku-saferlhf", "response_1", "empty"),
        ("pku-saferlhf", "safer_response_id", "tie"),
        ("skywork", "chosen", "empty"),
        ("skywork", "rejected", "empty"),
    ],
)
def test_a_row_without_a_value_is_counted_and_costs_no_other_row(
    name: str, column: str, reason: str, tmp_path: Path
) -> None:
    good = {
        "webgpt": webgpt_row("Why?", ("So.", "No."), 1.0),
        "pku-saferlhf": pku_row("Why?", ("So.", "No."), safer=1, better=1),
        "skywork": skywork_row("helpsteer2", "Why?", "So.", "No."),
    }[name]
    parquet([with_nothing(good, column), good], ROWS[name][1], tmp_path / f"{name}.parquet")
    for part in {None, "without-citations"} if name == "webgpt" else {None}:
        loaded = load(source(name, part=part), tmp_path)
        assert len(loaded.pairs) == 1
        assert loaded.dropped == {reason: 1}


def test_a_message_without_a_text_is_a_gap_in_its_tree(tmp_path: Path) -> None:
    whole = load_all([source("oasst2", path="whole.parquet")], write_oasst2(tmp_path / "whole.parquet", None))
    for number in range(len(OASST2)):
        path = tmp_path / f"{number}.parquet"
        write_oasst2(path, number)
        with suppress(InvalidInput):  # it gives no pairs
            part = load(source("oasst2", path=path.name), tmp_path)
            assert set(texts(part.pairs)) <= set(texts(whole.loaded.pairs))
        load_conversations(source("oasst2", path=path.name), tmp_path)


def write_oasst2(path: Path, without: int | None) -> Path:
    """Write the messages, one of them without its text; return the folder."""
    parquet([row | {"text": None} if i == without else row for i, row in enumerate(OASST2)], published.OASST2, path)
    return path.parent


COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Serve every set from a hub that is at COMMIT; return what is asked of it: (id, revision) of each read."""
    asked: list[tuple[str, str | None]] = []

    def load_dataset(path: str, *, data_files: Any, revision: str | None, split: str) -> Dataset:
        asked.append((path, revision))
        name = next(name for name, (hub_id, *_) in HUB.items() if hub_id == path)
        rows, features = ROWS[name]
        return Dataset.from_list(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("training.data.rows.dataset_commit", lambda _, revision: COMMIT if revision != "gone" else None)
    return asked


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
@pytest.mark.parametrize("name", [name for name in HUB if name != "oasst2"])
def test_a_set_is_read_at_the_commit_that_is_recorded(
    name: str, revision: str | None, tmp_path: Path, hub: list[tuple[str, str | None]]
) -> None:
    mixture = load_all([source(name, revision=revision)], tmp_path)
    assert hub
    assert {asked for _, asked in hub} == {COMMIT}
    assert mixture.commits == {name: COMMIT}
    assert mixture.sha256 == {name: pairs_sha256(mixture.loaded.pairs)}


def test_without_an_answer_from_the_hub_the_pairs_are_hashed_all_the_same(
    tmp_path: Path, hub: list[tuple[str, str | None]]
) -> None:
    mixture = load_all([source("skywork", revision="gone")], tmp_path)
    assert hub == [(HUB["skywork"][0], "gone")], "the cache may have it"
    assert mixture.commits == {}
    assert list(mixture.sha256) == ["skywork"]


def test_a_commit_is_taken_as_it_is_and_a_hub_without_answer_gives_none() -> None:
    assert dataset_commit("no/such-set", COMMIT) == COMMIT
    assert dataset_commit("no/such-set", "main") is None


def test_a_pinned_set_is_not_read_from_a_local_copy(tmp_path: Path) -> None:
    skywork(tmp_path)
    with pytest.raises(InvalidInput, match=r"pinned to revision v1 of the hub, and .*skywork would be read instead"):
        load(source("skywork", revision="v1"), tmp_path)


def test_the_hash_of_a_local_copy_follows_its_pairs(tmp_path: Path) -> None:
    skywork(tmp_path)
    whole = load_all([source("skywork"), source("skywork", part="chat", domain="chat")], tmp_path).sha256
    assert sorted(whole) == ["skywork", "skywork:chat"]
    skywork(tmp_path, SKYWORK[:-1])
    fewer = load_all([source("skywork"), source("skywork", part="chat", domain="chat")], tmp_path).sha256
    assert fewer["skywork"] != whole["skywork"]
    assert fewer["skywork:chat"] == whole["skywork:chat"]


@pytest.mark.parametrize("field", ["prompt", "chosen", "rejected", "domain", "subset"])
def test_every_field_of_a_pair_is_in_the_hash(field: str) -> None:
    pair = PreferencePair(prompt="p", chosen="c", rejected="r")
    other = pair.model_copy(update={field: "another"})
    assert len({pairs_sha256(pairs) for pairs in ([pair], [other], [pair, other], [other, pair])}) == 4


def test_max_pairs_takes_the_same_ones_whatever_the_order(tmp_path: Path) -> None:
    records = [{"prompt": f"p{i}", "chosen": "c", "rejected": "r"} for i in range(50)]
    jsonl(records, tmp_path / "own.jsonl")
    jsonl(records[::-1], tmp_path / "turned.jsonl")
    one, other = (load(source("jsonl", path=f"{name}.jsonl", max_pairs=7), tmp_path) for name in ("own", "turned"))
    assert {p.prompt for p in one.pairs} == {p.prompt for p in other.pairs}
    assert len(one.pairs) == 7
    assert {p.prompt for p in one.pairs} != {f"p{i}" for i in range(7)}
    assert one.dropped == {"beyond max_pairs": 43}


@pytest.mark.parametrize(
    "fields",
    [
        {"dataset": "jsonl"},
        {"dataset": "skywork", "part": "math"},
        {"dataset": "oasst2", "part": "English"},
        {"dataset": "webgpt", "max_pairs": 0},
        {"dataset": "ultrafeedback"},
        {"dataset": "webgpt", "weight": 2},
        {"dataset": "webgpt", "revision": ""},
        {"dataset": "webgpt", "path": "copy", "revision": "main"},
        {"dataset": "jsonl", "path": "pairs.jsonl", "revision": "main"},
    ],
)
def test_an_invalid_source_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Source.model_validate(fields)
