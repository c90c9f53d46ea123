"""Find the applications and the model that come with TinyRM: inside the package in a wheel, otherwise beside it."""

from pathlib import Path

STARTER = Path("models/starter")


def root() -> Path:
    """Return the folder that holds `service`, `training`, `export`, `evaluation` and `models/starter`."""
    package = Path(__file__).parent
    installed = package / "_apps"
    return installed if installed.is_dir() else package.parent


def resolve(path: Path | str) -> Path:
    """Return `path`, except for a `models/starter` that does not exist: then the starter that comes with TinyRM."""
    path = Path(path)
    return root() / STARTER if path == STARTER and not path.exists() else path
