"""Test that opening a model runs no pickle and no code, and reads no file without a hash."""

import ast
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.test_architecture import shipped_files

# Events of the interpreter itself (PEP 578), so that no library can do it unseen.
WATCHED = """
import sys, os
from pathlib import Path
folder, unpickled, opened = os.path.realpath(sys.argv[1]), [], set()
def watch(event, arguments):
    if event == "pickle.find_class" and watching:
        unpickled.append((event, arguments))
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if path.startswith(folder + os.sep):
            opened.add(os.path.relpath(path, folder))
watching = False
sys.addaudithook(watch)
from tinyrm.bundle import Bundle
from tinyrm.comparison import Comparison
from tinyrm.scorer import Scorer
from tinyrm.engines import torch_gpu as torch_cuda
import tinyrm.engines.onnx_runtime
watching = True
bundle = Bundle.open(Path(folder))
if sys.argv[2] == "torch":
    manifest = bundle.manifest
    torch_cuda.open_torch_cuda(bundle.weights_file(), manifest, "fp32", device="cpu")
else:
    Scorer.open(Path(folder)).score([Comparison("q", "x", "y")], ["z"])
watching = False
assert "manifest.json" in opened, "nothing was watched"
print(sorted(opened - set(bundle.manifest.files) - {"manifest.json"}), unpickled)
"""


class Planted:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory, weights_bundle_folder: Path) -> Path:
    """Return a bundle with every file that a careless loader would open."""
    folder = tmp_path_factory.mktemp("poisoned") / "toy"
    shutil.copytree(weights_bundle_folder, folder)
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin", "optimizer.pt", "weights.pkl"):
        (folder / name).write_bytes(pickle.dumps(Planted()))
    for name in ("modeling_custom.py", "configuration_custom.py", "__init__.py", "sitecustomize.py"):
        (folder / name).write_text("raise SystemExit('ran')")
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "modeling_custom.Custom"}}')
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_opening_unpickles_nothing_and_reads_only_files_with_a_hash(engine: str, poisoned: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, poisoned, engine], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] []"


@pytest.mark.slow
def test_the_check_notices_a_pickle(tmp_path: Path, bundle_folder: Path) -> None:
    """Prove that the check can fail."""
    copy = tmp_path / "toy"
    shutil.copytree(bundle_folder, copy)
    (copy / "weights.pkl").write_bytes(pickle.dumps(Path("x")))
    careless = WATCHED.replace(
        "watching = True\n", f"watching = True\nimport pickle; pickle.load(open({str(copy / 'weights.pkl')!r}, 'rb'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", careless, copy, "onnxruntime"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "weights.pkl" in done.stdout
    assert "pickle.find_class" in done.stdout


def test_no_source_file_uses_remote_code_or_pickles() -> None:
    for file in shipped_files():
        for node in ast.walk(ast.parse(file.read_text())):
            where = f"{file}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant), where
                assert node.value.value is False, where
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}, where
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), where
