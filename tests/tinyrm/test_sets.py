"""Test that responses beside each other in one sequence are told apart by nothing but what they say."""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertConfig, ModernBertConfig, PreTrainedConfig, RobertaConfig

from tests.conftest import spread
from tinyrm.encoding import SET_PROMPT_SHARE, Encoder, SpecialTokens
from tinyrm.errors import InvalidInput
from tinyrm.manifest import SetReading
from tinyrm.modernbert.sets import Places, SetModel, set_class
from tinyrm.template import FIGURE2, Template

CLS, SEP, PAD, MASK, FIRST_WORD, WORDS = 1, 2, 3, 4, 5, 120
TOLERANCE = 1e-5
READINGS = [
    SetReading(others="none"),
    SetReading(others="masks"),
    SetReading(others="tokens", layers=1),
    SetReading(others="tokens"),
    SetReading(others="none", read_at="mean"),
    SetReading(others="tokens", layers=1, read_at="mean"),
]
LENGTHS = (3, 40, 17, 25, 60)


def config(family: str, reading: SetReading) -> PreTrainedConfig:
    sizes = {
        "vocab_size": WORDS,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "num_hidden_layers": 7,
        "num_labels": 1,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), PAD),
    }
    made: PreTrainedConfig = (
        ModernBertConfig(**sizes, local_attention=16, max_position_embeddings=512)
        if family == "modernbert"
        else BertConfig(**sizes, max_position_embeddings=128)
    )
    made.set_reading = {**reading.model_dump(), "mask_id": MASK, "sep_id": SEP}
    return made


def model(family: str, reading: SetReading) -> SetModel:
    torch.manual_seed(0)
    made = set_class(config(family, reading))(config(family, reading)).eval()
    spread(made)
    if made.others is not None:
        torch.nn.init.normal_(made.others.weight)
    return made


def sequence(prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> list[int]:
    return [CLS, *prompt, SEP, *(i for response in responses for i in (*response, MASK, SEP))]


def scores(made: SetModel, rows: Sequence[Sequence[int]]) -> Tensor:
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.inference_mode():
        logits: Tensor = made(ids, mask).logits
    return logits


@pytest.fixture(scope="module")
def texts() -> tuple[list[int], list[list[int]]]:
    rng = np.random.default_rng(0)
    prompt, *responses = (rng.integers(FIRST_WORD, WORDS, n).tolist() for n in (30, *LENGTHS))
    return prompt, responses


@pytest.mark.parametrize("reading", READINGS, ids=str)
@pytest.mark.parametrize("family", ["modernbert", "bert"])
def test_exchanging_responses_exchanges_scores(
    family: str, reading: SetReading, texts: tuple[list[int], list[list[int]]]
) -> None:
    prompt, responses = texts
    made = model(family, reading)
    expected = scores(made, [sequence(prompt, responses)])[0]
    assert expected.std() > 100 * TOLERANCE, "scores all alike would pass anything"
    for order in list(permutations(range(len(responses))))[7::50]:
        exchanged = scores(made, [sequence(prompt, [responses[i] for i in order])])[0]
        torch.testing.assert_close(exchanged, expected[list(order)], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("reading", READINGS, ids=str)
@pytest.mark.parametrize("family", ["modernbert", "bert"])
def test_a_batch_changes_no_score_and_company_only_where_the_reading_says_so(
    family: str, reading: SetReading, texts: tuple[list[int], list[list[int]]]
) -> None:
    prompt, responses = texts
    made = model(family, reading)
    rows = [sequence(prompt, responses), sequence(prompt[:9], responses[1:3]), sequence(prompt, responses[:1])]
    together = scores(made, rows)
    for row, logits, count in zip(rows, together, (5, 2, 1), strict=True):
        torch.testing.assert_close(logits[:count], scores(made, [row])[0], atol=TOLERANCE, rtol=0)
        assert not logits[count:].any()
    alone = torch.stack([scores(made, [sequence(prompt, [response])])[0, 0] for response in responses])
    difference = (alone - together[0]).abs().max()
    assert difference < TOLERANCE if reading.scores_alone else difference > 100 * TOLERANCE


def test_a_new_model_weighs_others_like_one_other_and_keeps_what_it_learns(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    reading = SetReading(others="tokens", layers=2)
    made = set_class(config("modernbert", reading))(config("modernbert", reading))
    assert made.crossing_layers() == [3, 6]
    assert made.others is not None
    bias = made.others(torch.tensor([1, 2, 5]))
    assert bias[:, 0, 0].tolist() == pytest.approx([0, 0, -np.log(4)])
    torch.nn.init.normal_(made.others.weight)
    folder = tmp_path_factory.mktemp("saved")
    made.save_pretrained(folder)
    again = type(made).from_pretrained(folder)
    assert torch.equal(again.others.weight, made.others.weight)
    assert again.reading == reading


def test_positions_restart_behind_the_prompt() -> None:
    row = torch.tensor([[CLS, 9, 9, SEP, 9, MASK, SEP, 9, 9, 9, MASK, SEP, PAD]])
    places = Places.find(row, (row != PAD).long(), mask_id=MASK, sep_id=SEP)
    assert places.part[0, :-1].tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert places.position[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 0]
    assert places.responses.tolist() == [2]


def test_a_family_that_cannot_read_sets_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no roberta reads sets; bert, modernbert can"):
        set_class(RobertaConfig())


@pytest.fixture
def set_encoder(fast_tokenizer: Tokenizer, special: SpecialTokens) -> Encoder:
    return Encoder(fast_tokenizer, FIGURE2.of_a_set(), special, 128)


def test_a_set_holds_its_prompt_once(set_encoder: Encoder) -> None:
    special = set_encoder.special
    texts = set_encoder.tokenize("Pick.", "what is red", ["red", "blue [MASK] [SEP] red", "a much longer response"])
    encoding = set_encoder.assemble_set(texts, (0, 1, 2))
    ids = encoding.input_ids.tolist()
    assert (ids.count(special.mask), ids.count(special.sep), set_encoder.count_scores(encoding)) == (3, 4, 3)
    prompt, *parts = [list(part) for part in _split(ids, special.sep)][:-1]
    assert parts == [[*response, special.mask] for response in texts.responses]
    assert prompt[-len(texts.prompt) :] == texts.prompt
    assert set_encoder.assemble_set(texts, (2, 0)).input_ids.tolist() == _joined(
        prompt, [parts[2], parts[0]], special.sep
    )


def _split(ids: Sequence[int], at: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for i in ids:
        if i == at:
            parts.append([])
        else:
            parts[-1].append(i)
    return parts


def _joined(prompt: list[int], parts: Sequence[list[int]], sep: int) -> list[int]:
    return [i for part in (prompt, *parts) for i in (*part, sep)]


def test_what_a_text_loses_does_not_depend_on_its_company(set_encoder: Encoder) -> None:
    long, short = "red blue " * 200, "red"
    texts = set_encoder.tokenize("Pick.", "what " * 300, [long, short, long])
    whole = set_encoder.assemble_set(texts, (0, 1, 2))
    alone = [set_encoder.assemble_set(texts, (i,)) for i in range(3)]
    assert whole.truncation.others == (alone[2].truncation.response_a,)
    assert (whole.truncation.response_a, whole.truncation.response_b) == (alone[0].truncation.response_a, 0)
    assert {one.truncation.prompt for one in alone} == {whole.truncation.prompt}
    room = set_encoder.max_tokens - len(alone[1]) + len(texts.responses[1])
    assert len(alone[0]) == set_encoder.max_tokens, "a long prompt with a long response fills the budget"
    assert room > (1 - SET_PROMPT_SHARE) * set_encoder.max_tokens / 2
    assert whole.truncation.total == whole.truncation.prompt + 2 * alone[0].truncation.response_a


def test_a_set_beyond_the_budget_is_refused(set_encoder: Encoder) -> None:
    texts = set_encoder.tokenize("Pick.", "what", ["red " * 100] * 12)
    with pytest.raises(InvalidInput, match=r"longer than 1,024; split it"):
        set_encoder.assemble_set(texts, range(12))


@pytest.mark.parametrize(
    ("segments", "words", "reason"),
    [
        (("[CLS]", "{prompt}", "{response}", "[MASK]", "[SEP]"), None, "ends in"),
        (("[CLS]", "{prompt}", "[SEP]", "x", "{response}", "[MASK]", "[SEP]"), None, "ends in"),
        (("[CLS]", "[SEP]", "{prompt}", "[SEP]", "{response}", "[MASK]", "[SEP]"), None, "no other"),
        (("[CLS]", "{prompt}", "[SEP]", "{response}", "[MASK]", "[SEP]"), (" 0", " 1"), "no label words"),
    ],
)
def test_a_template_of_a_set_has_its_boundaries(
    segments: tuple[str, ...], words: tuple[str, str] | None, reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        Template(name="own", segments=segments, label_words=words)


def test_the_wording_of_a_pair_becomes_that_of_a_set() -> None:
    made = FIGURE2.of_a_set()
    assert made.reads == "set"
    assert made.segments == (
        "[CLS]",
        "{instruction}",
        " Question:",
        " {prompt}",
        "[SEP]",
        " {response}",
        "[MASK]",
        "[SEP]",
    )
