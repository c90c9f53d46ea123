"""Filter preference data: keep the pairs whose chosen response wins clearly. Needs `datasets`.

    python examples/filter_dataset.py --url http://127.0.0.1:8000 --min-probability 0.55 --out kept.jsonl

--pairs reads JSON lines with prompt, chosen and rejected; without it two pairs made up here are filtered.
"""

import argparse

from datasets import Dataset

from tinyrm.integrations.datasets import PreferenceFilter

PROMPT = "Natalia sold 48 clips in April and half as many in May. How many in all?"
RIGHT = "In May she sold 48 / 2 = 24. In all she sold 48 + 24 = 72 clips."
WRONG = "In May she sold 48 * 2 = 96. In all she sold 48 + 96 = 144 clips."
# The second pair is the first one with a wrong label.
PAIRS = [
    {"prompt": PROMPT, "chosen": RIGHT, "rejected": WRONG},
    {"prompt": PROMPT, "chosen": WRONG, "rejected": RIGHT},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--pairs", help="JSON lines, plain or packed")
    parser.add_argument("--min-probability", type=float, default=0.5)
    parser.add_argument("--out", help="where the kept pairs go, as JSON lines")
    arguments = parser.parse_args()
    pairs = Dataset.from_json(arguments.pairs) if arguments.pairs else Dataset.from_list(PAIRS)
    kept = pairs.map(PreferenceFilter(arguments.url, arguments.min_probability), batched=True)
    print(f"{len(kept)} of {len(pairs)} pairs kept")
    for pair in kept.select(range(min(5, len(kept)))):
        print(f"{pair['probability_chosen']:.3f}  {pair['prompt'][:60]!r}  {pair['chosen'][:60]!r}")
    if arguments.out:
        kept.to_json(arguments.out)


if __name__ == "__main__":
    main()
