"""Where the applications and the model that come with TinyRM lie: in the wheel within the package, else beside it."""

from pathlib import Path

STARTER = Path("models/starter")


def root() -> Path:
    """Return the folder that holds `service`, `training`, `export`, `evaluation` and `models/starter`."""
    package = Path(__file__).parent
    installed = package / "_apps"
    return installed if installed.is_dir() else package.parent


def folder() -> Path:
    """Return the folder of the starter bundle."""
    return root() / STARTER


def resolve(path: Path | str) -> Path:
    """Return `path`; for `models/starter`, where the working directory has none, the starter that TinyRM comes with."""
    path = Path(path)
    return folder() if path == STARTER and not path.exists() else path
