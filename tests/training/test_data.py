"""Test the way from pairs to rows: held-out pairs, the text of a row, the place of its label."""

import random

import pytest
import torch

from tests.training.conftest import SPEC, toy_pairs
from tinyrm.encoding import Encoder, Encoding, SpecialTokens
from tinyrm.pairs import PreferencePair
from tinyrm.spec import Spec
from training.data.collate import EpochSampler, PairDataset, PairSampling, RowCollator, longest_first
from training.data.split import balanced, balanced_counts, split_by_prompt


def pair(prompt: str, answer: str = "yes", domain: str | None = None) -> PreferencePair:
    return PreferencePair(prompt=prompt, chosen=answer, rejected="no", domain=domain)


def collate(special: SpecialTokens, encoder: Encoder, pairs: list[tuple[Encoding, ...]]) -> dict[str, torch.Tensor]:
    return RowCollator(special.pad, special.mask)(pairs)


def test_all_pairs_of_a_prompt_are_on_one_side() -> None:
    pairs = [pair(f"prompt {i % 50}", f"answer {i}") for i in range(500)]
    learn, held_out = split_by_prompt(pairs, 0.3, seed=1)
    assert len(learn) + len(held_out) == 500
    assert 0 < len({p.prompt for p in held_out}) < 50
    assert not {p.prompt for p in learn} & {p.prompt for p in held_out}


def test_the_split_has_about_the_configured_share() -> None:
    held_out = split_by_prompt([pair(str(i)) for i in range(4000)], 0.05, seed=1)[1]
    # Binomial: 200 expected, standard deviation 13.8.
    assert 140 < len(held_out) < 260


def test_split_is_the_same_whatever_the_order_of_the_file() -> None:
    pairs = toy_pairs(200)
    shuffled = random.Random(0).sample(pairs, len(pairs))
    held_out, again = (split_by_prompt(p, 0.2, seed=3)[1] for p in (pairs, shuffled))
    assert {p.prompt for p in held_out} == {p.prompt for p in again}


def test_split_depends_on_the_seed() -> None:
    pairs = toy_pairs(200)
    assert split_by_prompt(pairs, 0.2, seed=3)[1] != split_by_prompt(pairs, 0.2, seed=4)[1]


def test_rows_alternate_chosen_first_and_chosen_second(
    encoded: list[tuple[Encoding, ...]], toy_encoder: Encoder, special: SpecialTokens
) -> None:
    batch = collate(special, toy_encoder, encoded)
    rows = [encoding for orders in encoded for encoding in orders]
    real = [ids[keep.bool()].tolist() for ids, keep in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert real == [row.input_ids.tolist() for row in rows]
    assert len({len(row) for row in real}) > 1, "rows of one length would not show padding"
    assert set(batch["input_ids"][~batch["attention_mask"].bool()].tolist()) == {special.pad}


def test_each_row_is_read_at_its_mask_and_names_the_chosen_response(
    encoded: list[tuple[Encoding, ...]], toy_encoder: Encoder, special: SpecialTokens
) -> None:
    batch = collate(special, toy_encoder, encoded)
    assert batch["input_ids"].flatten()[batch["read_at"]].tolist() == [special.mask] * 6
    assert (batch["read_at"] // batch["input_ids"].shape[1]).tolist() == list(range(6))
    assert batch["is_second"].tolist() == [False, True] * 3


def test_chosen_response_comes_first_in_the_first_row(toy_encoder: Encoder) -> None:
    chosen_first, chosen_second = PairDataset([pair("p", "zebra")], toy_encoder, PairSampling(SPEC, seed=0))[0]
    decode = toy_encoder._text.tokenizer.decode
    texts = [decode(row.input_ids.tolist()) for row in (chosen_first, chosen_second)]
    assert [text.index("zebra") < text.index("no") for text in texts] == [True, False]


def instructions(toy_encoder: Encoder, pairs: list[PreferencePair], rate: float, spec: Spec = SPEC) -> list[str]:
    data = PairDataset(pairs, toy_encoder, PairSampling(spec, seed=0, default_rate=rate))
    texts = [toy_encoder._text.tokenizer.decode(data[i][0].input_ids.tolist()) for i in range(len(data))]
    return [next(name for name, start in spec.domains.items() if text.startswith(start)) for text in texts]


@pytest.mark.parametrize(("rate", "shares"), [(0.0, (1.0, 1.0)), (0.3, (0.6, 0.8)), (1.0, (0.0, 0.0))])
def test_the_default_replaces_the_domains_instruction_in_the_configured_share(
    toy_encoder: Encoder, rate: float, shares: tuple[float, float]
) -> None:
    drawn_domains = instructions(toy_encoder, [pair("p", domain="safety")] * 300, rate)
    assert shares[0] <= drawn_domains.count("safety") / 300 <= shares[1]


def test_a_domain_that_the_spec_lacks_gets_the_default_instruction(toy_encoder: Encoder) -> None:
    assert instructions(toy_encoder, [pair("p", domain="chess"), pair("p")], 0.0) == ["general", "general"]


def test_lengths_order_pairs_as_their_tokens_do(toy_encoder: Encoder) -> None:
    pairs = [pair("p", "a " * n) for n in (3, 30, 1, 12)]
    data = PairDataset(pairs, toy_encoder, PairSampling(SPEC, seed=0))
    tokens = [len(data[i][0]) for i in range(4)]
    assert sorted(range(4), key=data.lengths().__getitem__) == sorted(range(4), key=tokens.__getitem__)


def test_sampler_visits_every_pair_once_in_an_order_of_seed_and_epoch() -> None:
    lengths = [i % 7 for i in range(50)]

    def order(seed: int, epoch: int) -> list[int]:
        return list(EpochSampler(lengths, 4, seed, lambda: epoch))

    assert sorted(order(1, 0)) == list(range(50))
    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed, epoch in ((1, 0), (1, 1), (9, 0))}) == 3


def test_sampler_puts_similar_lengths_into_one_batch() -> None:
    lengths = random.Random(0).choices(range(1000), k=400)
    order = list(EpochSampler(lengths, 8, seed=0, epoch=lambda: 0))
    spread = [max(b) - min(b) for b in ([lengths[i] for i in order[k : k + 8]] for k in range(0, 400, 8))]
    # Eight of a thousand at random lie 780 apart on average; a hundred sorted ones leave about 80 to a batch.
    assert sum(spread) / len(spread) < 200


@pytest.mark.parametrize("seed", range(5))
def test_the_longest_text_is_in_the_first_batch_of_a_run(seed: int) -> None:
    lengths = random.Random(seed).sample(range(1000), k=400)
    longest = lengths.index(max(lengths))
    first = [longest in list(EpochSampler(lengths, 8, seed, lambda epoch=epoch: epoch))[:8] for epoch in range(12)]
    assert first[0], "what does not fit in memory fails in the first step"
    assert not all(first), "later epochs are in random order"


def test_held_out_pairs_are_evaluated_by_length() -> None:
    pairs = [pair("p", "a" * n) for n in (3, 30, 1, 12)]
    assert [len(each.chosen) for each in longest_first(pairs)] == [30, 12, 3, 1]


POOL = ("Select the best response.", "Which response is more correct?")


def shown_by_coin(toy_encoder: Encoder, seed: int, coin_pairs: int = 1) -> list[bool]:
    """Return for 400 pairs whether their one order has the chosen response first."""
    data = PairDataset(toy_pairs(400), toy_encoder, PairSampling(SPEC, seed=seed, coin_pairs=coin_pairs))
    rows = [data[i] for i in range(400)]
    assert all((first is None) != (second is None) for first, second in rows)
    return [first is not None for first, _ in rows]


def test_a_coin_shows_each_pair_once_by_seed(toy_encoder: Encoder) -> None:
    heads = shown_by_coin(toy_encoder, seed=1)
    # Binomial: 200 expected, standard deviation 10.
    assert 160 < sum(heads) < 240
    assert heads == shown_by_coin(toy_encoder, seed=1) != shown_by_coin(toy_encoder, seed=2)


def test_neighbours_may_share_a_coin(toy_encoder: Encoder) -> None:
    heads = shown_by_coin(toy_encoder, seed=1, coin_pairs=20)
    groups = [set(heads[i : i + 20]) for i in range(0, 400, 20)]
    assert all(len(group) == 1 for group in groups)
    assert len(set(heads)) == 2


def test_a_row_that_is_read_alone_has_the_label_of_its_order(
    encoded: list[tuple[Encoding, ...]], toy_encoder: Encoder, special: SpecialTokens
) -> None:
    both = collate(special, toy_encoder, encoded)
    (_, b), (c, _), (_, f) = encoded
    alone = RowCollator(special.pad, special.mask)([(None, b), (c, None), (None, f)])
    assert alone["is_second"].tolist() == [True, False, True]
    width = alone["input_ids"].shape[1]
    assert alone["input_ids"].equal(both["input_ids"][[1, 2, 5], :width])


def drawn(toy_encoder: Encoder, pairs: list[PreferencePair], seed: int = 0) -> list[str]:
    data = PairDataset(pairs, toy_encoder, PairSampling(SPEC, seed=seed, prefixes={"general": POOL}))
    texts = [toy_encoder._text.tokenizer.decode(data[i][0].input_ids.tolist()) for i in range(len(data))]
    known = {*POOL, *SPEC.domains.values()}
    return [next(start for start in known if text.startswith(start)) for text in texts]


def test_prefixes_are_drawn_from_the_domains_pool(toy_encoder: Encoder) -> None:
    prefixes = drawn(toy_encoder, [pair("p", domain="general")] * 200)
    # Binomial: 100 expected, standard deviation 7.
    assert all(70 < prefixes.count(prefix) < 130 for prefix in POOL)
    assert prefixes == drawn(toy_encoder, [pair("p", domain="general")] * 200)
    assert prefixes != drawn(toy_encoder, [pair("p", domain="general")] * 200, seed=1)


def test_a_domain_without_a_pool_keeps_its_instruction(toy_encoder: Encoder) -> None:
    assert set(drawn(toy_encoder, [pair("p", domain="safety")] * 20)) == {"Which response is safer?"}


def test_a_domain_that_the_spec_lacks_draws_as_the_default_does(toy_encoder: Encoder) -> None:
    assert set(drawn(toy_encoder, [pair("p", domain="chess")] * 50)) == set(POOL)


@pytest.mark.parametrize(
    ("exponent", "counts"), [(1.0, {"a": 400, "b": 100}), (0.5, {"a": 200, "b": 100}), (0.0, {"a": 100, "b": 100})]
)
def test_balance_takes_no_pair_twice_and_all_of_the_smallest(exponent: float, counts: dict[str, int]) -> None:
    assert balanced_counts({"a": 400, "b": 100}, exponent) == counts
    pairs = [pair(str(i), domain="a" if i % 5 else "b") for i in range(500)]
    kept = balanced(pairs, exponent, seed=3)
    assert {domain: sum(p.domain == domain for p in kept) for domain in "ab"} == counts
    places = [int(p.prompt) for p in kept]
    assert places == sorted(set(places))
    assert kept == balanced(pairs, exponent, seed=3)
    assert exponent == 1 or kept != balanced(pairs, exponent, seed=4)
