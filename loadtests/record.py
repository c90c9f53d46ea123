"""Results, beside the document that shows them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadtests.markers import with_section

DOCUMENT = Path("docs/reliability.md")


def write(results: Mapping[str, Any], name: str, heading: str, section: str, document: Path = DOCUMENT) -> None:
    """The section between the markers of that name, and the numbers behind it in a JSON file beside it."""
    record = document.with_name(f"{name}.json")
    record.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = document.read_text(encoding="utf-8")
    document.write_text(with_section(text, name, heading, section), encoding="utf-8")
