"""Run a script of RewardBench's own package with a service as the model: no checkout, and nothing to edit in it.

    pip install rewardbench .
    python examples/run_rewardbench.py scripts.run_rm --model tinyrm --tokenizer ANY --do_not_save --disable_beaker_save

`tinyrm` compares the two responses of a row. `tinyrm-scores` scores each response by itself, for a service whose model
scores alone; scripts.run_v2 (RewardBench 2) needs that one. TINYRM_URL and TINYRM_API_KEY name the service.
"""

import os
import runpy
import sys

from rewardbench import REWARD_MODEL_CONFIG

from tinyrm.integrations.rewardbench import classifier_config, model_config


def main() -> None:
    url, key = os.environ.get("TINYRM_URL", "http://127.0.0.1:8000"), os.environ.get("TINYRM_API_KEY")
    REWARD_MODEL_CONFIG["tinyrm"] = model_config(url, api_key=key)
    REWARD_MODEL_CONFIG["tinyrm-scores"] = classifier_config(url, api_key=key)
    del sys.argv[0]  # the script reads the rest, and its own name
    runpy.run_module(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
