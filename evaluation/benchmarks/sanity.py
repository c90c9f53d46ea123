"""What a model falls for: good responses to held-out prompts against made-up bad ones, kind by kind."""

from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.report import Report, named_table, orders_and_length
from evaluation.scoring import ScoredPair, score_pairs
from evaluation.statistics import Estimate, Share
from evaluation.target import Target
from tinyrm.bundle import sha256
from tinyrm.errors import InvalidInput
from tinyrm.negatives import HARD, KINDS, MadePair, Pool, made_pair, make
from tinyrm.pairs import PreferencePair, read_pairs

NAME = "sanity"
NOTE = (
    "Each pair is the better response to a prompt of the file and a made-up bad one. The prompts must be held out: on "
    "those that a model was trained on, the figures are too good. `hard` is changed_number and planted_bug, `all` is "
    "every other kind. Margins are log-odds; a tie counts one half."
)


def run(target: Target, path: Path, pairs_per_kind: int, seed: int) -> Report:
    """Score made-up pairs of a file's prompts. Raises InvalidInput."""
    file_hash = sha256(path)  # before the work: it refuses a pipe
    made = sample(read_pairs(path), pairs_per_kind, seed)
    if not made:
        raise InvalidInput(f"{path} holds no pair of which a bad response can be made")
    scored = score_pairs(target, made)
    by_kind = {kind: [j for j, pair in zip(scored, made, strict=True) if pair.kind == kind] for kind in KINDS}
    together = {
        "hard": [j for kind in HARD for j in by_kind[kind]],
        "all and hard": scored,
        "all": [j for kind in KINDS if kind not in HARD for j in by_kind[kind]],
    }
    parts: dict[str, list[ScoredPair]] = {name: part for name, part in (by_kind | together).items() if part}
    estimates = {
        name: Estimate.of([j.credit for j in part], [j.pair.prompt for j in part]) for name, part in parts.items()
    }
    rows = {name: describe(part, estimates[name]) for name, part in parts.items()}
    missing = [kind for kind, part in by_kind.items() if not part]
    orders, lengths = orders_and_length(together["all"])
    figures = {
        "pairs": path.name,
        "pairs_sha256": file_hash,
        "pairs_per_kind": pairs_per_kind,
        "seed": seed,
        "kinds": rows,
        "without_pairs": missing,
        "length": lengths,
    }
    table = named_table(
        "kind",
        {
            name: {
                "pairs": f"{row['pairs']}",
                "accuracy": str(Share.from_estimate(estimates[name])),
                "mean margin": f"{row['mean_margin']:+.2f}",
                "bad one longer": f"{row['bad_longer']:.0%}",
            }
            for name, row in rows.items()
        },
    )
    notes = NOTE + (f" No pair of the file allows {', '.join(missing)}." if missing else "")
    overall = Share.from_estimate(estimates["all"])
    return Report(NAME, f"{table}\n\n{notes}\n\n{orders}", figures, overall, estimates, scored)


def sample(pairs: Sequence[PreferencePair], per_kind: int, seed: int) -> list[MadePair]:
    """Return at most `per_kind` different pairs of each kind, of as many prompts as there are, drawn by seed."""
    pool = Pool(pairs)
    made: list[MadePair] = []
    for number, kind in enumerate(KINDS):
        turns: Counter[str] = Counter()
        ranked: list[tuple[int, PreferencePair]] = []
        for place in np.random.default_rng([seed, number]).permutation(len(pairs)):
            pair = pairs[place]
            ranked.append((turns[pair.prompt], pair))
            turns[pair.prompt] += 1
        found: dict[tuple[str, str, str], MadePair] = {}
        # The first pair of every prompt, then the second ones.
        for _, pair in sorted(ranked, key=itemgetter(0)):
            if len(found) == per_kind:
                break
            text = make(pair, kind, pool, seed, held_out=True)
            if text is not None:
                found.setdefault((pair.prompt, pair.chosen, text), made_pair(pair, kind, text))
        made += found.values()
    return made


def describe(scored: Sequence[ScoredPair], accuracy: Estimate) -> dict[str, Any]:
    """Return the figures of one kind.

    mean_margin: calibrated log-odds for the good response.
    bad_longer: share of pairs whose made-up response has more characters; equally long ones count one half.
    """
    return {
        "pairs": len(scored),
        "prompts": len({j.pair.prompt for j in scored}),
        "accuracy": Share.from_estimate(accuracy).model_dump(),
        "mean_margin": float(np.mean([j.preference.margin for j in scored])),
        "bad_longer": 1 - float(np.mean([j.longer_is_better for j in scored])),
    }
