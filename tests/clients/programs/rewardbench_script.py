"""Run a script of RewardBench in a folder, as examples/run_rewardbench.py does, and print the files that it saves."""

import json
import os
import runpy
import sys
from pathlib import Path

example, folder, *arguments = sys.argv[1:]
os.chdir(folder)
sys.argv = [example, *arguments]
runpy.run_path(example, run_name="__main__")
saved = {path.name: json.loads(path.read_text()) for path in Path("results").rglob("*.json")}
print(json.dumps(saved))
