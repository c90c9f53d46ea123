"""The bills of materials are valid, and list what the Dockerfile installs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tinyrm import __version__
from tools.sbom import IMAGES, bill, compare, main

DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()


def libraries(document: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["version"] for one in document["components"] if one["type"] == "library"}


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_a_bill_is_valid(name: str) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator  # two seconds, for a grammar that it compiles

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill(name))) is None


def test_a_bill_is_always_the_same() -> None:
    assert json.dumps(bill("service")) == json.dumps(bill("service"))


def stages() -> dict[str, str]:
    """Return the text of each stage of the Dockerfile by its name."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_each_image_has_the_locks_that_the_dockerfile_installs_in_it() -> None:
    found = {
        name: re.search(r"^RUN .*install-locked\.sh (.+)$", text, re.MULTILINE)
        for name, text in stages().items()
        if "-build" in name
    }
    installed = {
        name.removesuffix("-build"): tuple(re.findall(r"/locks/([\w${}-]+\.txt)", command[1]))
        for name, command in found.items()
        if command
    }
    assert installed.pop("service") == ("${LOCK}.txt",)
    assert "ARG LOCK=serve\n" in stages()["service-build"]
    given = {name: image.locks for name, image in IMAGES.items()}
    assert (given.pop("service"), given.pop("openvino")) == (("serve.txt",), ("openvino.txt",))
    assert given == installed
    locks = {file.name for file in (REPOSITORY / "deploy" / "locks").glob("*.txt")}
    assert {lock for image in IMAGES.values() for lock in image.locks} == locks


def test_a_bill_lists_the_starter_where_the_image_has_it() -> None:
    for name, image in IMAGES.items():
        assert ("/app/models models" in stages()["service" if name == "openvino" else name]) == image.has_starter


@pytest.mark.parametrize("name", IMAGES)
def test_every_locked_package_is_listed_with_its_version(name: str) -> None:
    """Those of other systems and Pythons are not: their lines have a marker."""
    locked = "".join((REPOSITORY / "deploy" / "locks" / lock).read_text() for lock in IMAGES[name].locks)
    unconditional = dict(re.findall(r"^([\w.-]+)==([^\s;]+) \\$", locked, re.MULTILINE))
    listed = libraries(bill(name))
    assert len(unconditional) > 40
    assert unconditional.items() <= listed.items()
    assert set(listed) <= {name for name, _ in re.findall(r"^([\w.-]+)==(\S+)", locked, re.MULTILINE)}


def test_a_package_with_a_marker_is_listed_where_it_applies() -> None:
    service, gpu = libraries(bill("service")), libraries(bill("gpu"))
    assert "colorama" not in service, "it is for Windows"
    lock = (REPOSITORY / "deploy" / "locks" / "gpu.txt").read_text()
    by_python = dict(re.findall(r"^numpy==(\S+) ; python_full_version (<|>=) '3.12'", lock, re.MULTILINE))
    assert by_python[service["numpy"]] == "<"
    assert by_python[gpu["numpy"]] == ">=", "its base brings Python 3.12"


def test_a_bill_has_the_hash_of_the_wheel_and_of_each_file_of_the_model() -> None:
    document = bill("service")
    (numpy,) = [one for one in document["components"] if one["name"] == "numpy"]
    lock = (REPOSITORY / "deploy" / "locks" / "serve.txt").read_text()
    entry = re.search(rf"^numpy=={numpy['version']} .*\n((?:    --hash=.*\n)+)", lock, re.MULTILINE)
    assert entry
    (reference,) = numpy["externalReferences"]
    assert {one["content"] for one in reference["hashes"]} == set(re.findall(r"sha256:(\w+)", entry[1]))
    manifest = json.loads((REPOSITORY / "models" / "starter" / "manifest.json").read_text())
    (model,) = [one for one in document["components"] if one["type"] == "machine-learning-model"]
    assert (model["name"], model["version"]) == (manifest["name"], manifest["revision"])
    assert {one["name"]: one["hashes"][0]["content"] for one in model["components"]} == manifest["files"]
    assert document["metadata"]["component"]["version"] == __version__


def test_an_image_is_compared_with_its_bill(capsys: pytest.CaptureFixture[str]) -> None:
    document = bill("service")
    lines = [f"{name.replace('-', '_').title()}=={version}" for name, version in libraries(document).items()]
    assert compare(document, "\n".join(lines)) == 0
    assert compare(document, "\n".join([*lines[1:], "leftpad==1.0"])) == 1
    printed = capsys.readouterr().out
    assert "not in the bill: leftpad==1.0" in printed
    assert f"missing: {min(libraries(document))}==" in printed


def test_each_image_gets_a_file(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path / "sbom")]) == 0
    assert {file.name for file in (tmp_path / "sbom").iterdir()} == {f"{name}.cdx.json" for name in IMAGES}
