"""What else a fleet runs into, measured one by one: tokenizing, and reading many replicas' metrics."""

import re
import time
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from loadtests.load.scrape import families_of
from loadtests.payloads import Payloads

SERIES = re.compile(r"^([A-Za-z_:][\w:]*)\{", flags=re.MULTILINE)
BARE = re.compile(r"^([A-Za-z_:][\w:]*) ", flags=re.MULTILINE)


def tokenizing(payloads: Payloads, model: Path, seconds: float) -> dict[str, float]:
    """Pairs and tokens a second of one core, by the CPU time of all threads that work at it."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    texts = [[pair["prompt"], pair["response_a"], pair["response_b"]] for pair in payloads.comparisons]
    pairs = tokens = 0
    begun, spent = time.perf_counter(), time.process_time()
    while time.perf_counter() - begun < seconds:
        encodings = tokenizer.encode_batch_fast(texts[pairs % len(texts)], add_special_tokens=False)
        pairs, tokens = pairs + 1, tokens + sum(len(encoding) for encoding in encodings)
    spent = time.process_time() - spent
    return {"pairs_per_core_s": pairs / spent, "tokens_per_core_s": tokens / spent}


def merging(page: str, pages: int) -> dict[str, Any]:
    """What one process takes for each page that it makes part of one; asking the replicas comes on top."""
    begun = time.perf_counter()
    whole = merged(page, pages)
    took_s = time.perf_counter() - begun
    return {"series": families_of(page).total(), "page_bytes": len(whole) / pages, "merge_s_a_page": took_s / pages}


def merged(page: str, replicas: int) -> str:
    """A page of so many: each series gets its replica's name and stands with its family."""
    together: dict[str, list[str]] = {}
    for replica in range(replicas):
        for family in labelled(page, f"replica-{replica}").split("# HELP ")[1:]:
            name, _, lines = family.partition(" ")
            together.setdefault(name, []).append(lines)
    return "".join(f"# HELP {name} {''.join(lines)}" for name, lines in together.items())


def labelled(page: str, replica: str) -> str:
    named = SERIES.sub(rf'\1{{replica="{replica}",', page)
    return BARE.sub(rf'\1{{replica="{replica}"}} ', named)
