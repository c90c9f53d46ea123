"""Fixtures for the core: the real tokenizer, a bundle to damage, one plain comparison."""

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tinyrm.comparison import Comparison
from tinyrm.encoding import SpecialTokens

PAIR = Comparison("What is 2 + 2?", "It is 4.", "It is 5.")


@pytest.fixture(scope="session")
def modernbert(data_dir: Path) -> Tokenizer:
    path = data_dir / "modernbert-tokenizer" / "tokenizer.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return Tokenizer.from_file(str(path))


@pytest.fixture(scope="session")
def modernbert_special() -> SpecialTokens:
    return SpecialTokens(cls=50281, sep=50282, pad=50283, mask=50284)


@pytest.fixture
def scratch_bundle(bundle_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the bundle that a test may damage."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "toy"))
