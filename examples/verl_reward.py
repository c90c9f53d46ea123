"""The two reward functions for verl, called as verl calls them; verl 0.9 compares whole groups with the manager of
docs/integrations.md, which only runs in verl. In a run of verl this is configuration alone:

reward.custom_reward_function.path=pkg://tinyrm.integrations.verl
reward.custom_reward_function.name=compute_score
+reward.custom_reward_function.reward_kwargs.base_url=http://127.0.0.1:8000

python examples/verl_reward.py --url http://127.0.0.1:8000
"""

import argparse

from tinyrm.integrations.verl import compute_score, compute_score_batch

QUESTION = "Natalia sold 48 clips in April and half as many in May. How many in all?"
REFERENCE = "In May she sold 48 / 2 = 24. In all she sold 48 + 24 = 72 clips."
RESPONSES = ["I like clips.", "Half of 48 is 24, and 48 + 24 = 72, so she sold 72 clips.", "She sold 144."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    settings = {"base_url": parser.parse_args().url, "domains": {"openai/gsm8k": "reasoning"}}
    n = len(RESPONSES)
    info = {"question": QUESTION}
    group = compute_score_batch(["openai/gsm8k"] * n, RESPONSES, [REFERENCE] * n, [info] * n, **settings)
    for response, in_group in zip(RESPONSES, group, strict=True):
        alone = compute_score("openai/gsm8k", response, REFERENCE, info, **settings)
        print(f"beats the reference {alone:.3f}  in its group {in_group:+.3f}  {response}")


if __name__ == "__main__":
    main()
