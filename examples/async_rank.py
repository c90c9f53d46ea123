"""Several groups of responses ranked at once, with asyncio.

python examples/async_rank.py --url http://127.0.0.1:8000
"""

import argparse
import asyncio

from tinyrm import AsyncClient

GROUPS = {
    "Natalia sold 48 clips in April and half as many in May. How many in all?": [
        "I like clips.",
        "In May she sold 48 / 2 = 24. In all she sold 48 + 24 = 72 clips.",
        "In May she sold 48 * 2 = 96. In all she sold 48 + 96 = 144 clips.",
    ],
    "Say hello to my grandmother.": ["No.", "Hello, dear grandmother! How are you today?", "hi"],
}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    async with AsyncClient(parser.parse_args().url) as client:
        ranks = await asyncio.gather(*(client.rank(prompt, responses) for prompt, responses in GROUPS.items()))
    for (prompt, responses), ranked in zip(GROUPS.items(), ranks, strict=True):
        print(prompt)
        for i in ranked.order:
            print(f"  {ranked.strengths[i]:+.2f} ± {ranked.standard_errors[i]:.2f}  {responses[i]}")


if __name__ == "__main__":
    asyncio.run(main())
