"""Best of n: keep the best of several responses to one prompt.

python examples/best_of_n.py --url http://127.0.0.1:8000
"""

import argparse

from tinyrm import Client

PROMPT = "Natalia sold 48 clips in April and half as many in May. How many in all?"
RESPONSES = [
    "I like clips.",
    "In May she sold 48 * 2 = 96. In all she sold 48 + 96 = 144 clips.",
    "In May she sold 48 / 2 = 24. In all she sold 48 + 24 = 72 clips.",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    with Client(parser.parse_args().url) as client:
        best = client.rank(PROMPT, RESPONSES, domain="reasoning").order[0]
    print(f"{best}: {RESPONSES[best]}")


if __name__ == "__main__":
    main()
