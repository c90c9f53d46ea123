"""Build the wheel: the library, and within it the applications and the starter model that `tinyrm serve` runs.

The top-level folders keep their place in the repository. In the wheel they lie under `tinyrm/_apps/`, so that names as
common as `service` do not become top-level packages of the user's environment; `tinyrm/cli/applications.py` finds them.
Everything else about the package is in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("service", "training", "export", "evaluation", "models/starter")


class BuildWithApplications(build_py):
    """Copy the applications beside the library's modules. An editable install uses the checkout's folders instead."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        applications = Path(self.build_lib, "tinyrm", "_apps")
        shutil.rmtree(applications, ignore_errors=True)  # of an earlier build
        for folder in FOLDERS:
            shutil.copytree(folder, applications / folder, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithApplications})
