"""Test the private copies of a served bundle's files."""

import gc
import os
from contextlib import suppress
from pathlib import Path

import pytest

from service.engine.pinned import OPEN_FILES, PinnedFiles, is_sealed, needed_files, open_inherited, open_pinned, unpin
from tinyrm.bundle import Bundle
from tinyrm.engines import EngineOptions
from tinyrm.errors import InvalidBundle, TamperedBundle


def open_copies() -> list[str]:
    """Return the files in memory that this process has open; its other threads open and close files of other kinds."""
    files = []
    for link in OPEN_FILES.iterdir():
        with suppress(OSError):  # closed since the listing, as the listing's own
            files.append(link.readlink().name)
    return sorted(file for file in files if "tinyrm-" in file)


def test_copies_are_closed_with_their_bundle_or_on_demand(bundle_folder: Path) -> None:
    gc.collect()
    before = open_copies()
    bundle = open_pinned(bundle_folder, EngineOptions())
    assert len(open_copies()) == len(before) + len(bundle.files)
    unpin(bundle)
    unpin(bundle)
    assert open_copies() == before
    bundle = open_pinned(bundle_folder, EngineOptions())
    del bundle
    assert open_copies() == before


def test_a_file_that_cannot_be_read_leaves_no_copy_behind(bundle_folder: Path, tmp_path: Path) -> None:
    before = open_copies()
    with pytest.raises(InvalidBundle, match="missing cannot be copied into memory"):
        PinnedFiles.copy({"manifest.json": bundle_folder / "manifest.json", "missing": tmp_path / "missing"})
    assert open_copies() == before


def test_copies_cannot_be_changed_and_others_are_verified_by_the_process_that_inherits_them(
    bundle_folder: Path,
) -> None:
    bundle = open_pinned(bundle_folder, EngineOptions())
    assert isinstance(bundle.files, PinnedFiles)
    for descriptor in bundle.files.descriptors.values():
        assert is_sealed(descriptor)
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 0)
    descriptors = {name: os.dup(descriptor) for name, descriptor in bundle.files.descriptors.items()}
    assert open_inherited(bundle_folder, bundle.manifest, descriptors).manifest == bundle.manifest
    name = next(iter(descriptors))
    loose = PinnedFiles.of(name, b"something else")
    with pytest.raises(TamperedBundle):
        open_inherited(bundle_folder, bundle.manifest, {name: os.dup(loose.descriptors[name])})


GRAPHS = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
FILES = ["model.onnx", "model.onnx.data", "model.int8.onnx", "model.int8.onnx.data", "own.onnx", "w.safetensors", "t"]


@pytest.mark.parametrize(
    ("options", "left_out"),
    [
        (EngineOptions("onnxruntime-cpu", "fp32"), {"model.int8.onnx", "model.int8.onnx.data", "w.safetensors"}),
        (EngineOptions("onnxruntime-cpu", "int8"), {"model.onnx", "own.onnx", "w.safetensors"}),
        (EngineOptions("openvino-cpu", "bf16"), {"model.int8.onnx", "model.int8.onnx.data", "w.safetensors"}),
        (EngineOptions("torch-cuda", "fp32"), {"model.int8.onnx", "model.int8.onnx.data"}),
    ],
)
def test_only_files_that_the_engine_may_read_are_copied(
    bundle_folder: Path, options: EngineOptions, left_out: set[str]
) -> None:
    """The graph of one engine refers to the weights of the common one, so these stay where a graph may need them."""
    manifest = Bundle.open(bundle_folder).manifest.model_copy(
        update={
            "precisions": GRAPHS,
            "specialised": {"onnxruntime-cpu": {"fp32": "own.onnx"}},
            "weights": "w.safetensors",
            "files": dict.fromkeys(FILES, "0" * 64),
        }
    )
    expected = set(FILES) - left_out - ({"model.onnx.data"} if options.precision == "int8" else set())
    assert set(needed_files(manifest, options)) == expected
