"""Write what each image holds beyond its base, as a CycloneDX document: `python -m tools.sbom`, or `make sbom`.

The packages are those of the locks that the Dockerfile installs, as far as they apply to the image's system and Python,
with the hashes of their wheels; beside them are our own version and the model in the image. The packages of the base
image are not in it.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement

from tinyrm import __version__
from tinyrm.command_line import parse
from tinyrm.errors import InvalidInput
from tinyrm.manifest import Manifest

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "deploy" / "locks"
PYPI, TORCH_INDEX = "https://pypi.org/simple", "https://download.pytorch.org/whl/cpu"
STARTER = ROOT / "models" / "starter"


@dataclass(frozen=True, slots=True)
class Image:
    """A target of the Dockerfile: its locks, and the Python that its base brings."""

    locks: tuple[str, ...]
    python: str
    has_starter: bool


IMAGES = {
    "service": Image(("serve.txt",), "3.11", has_starter=True),
    "openvino": Image(("openvino.txt",), "3.11", has_starter=True),  # the target service with --build-arg LOCK=openvino
    "gpu": Image(("gpu.txt",), "3.12", has_starter=True),
    "export": Image(("torch-cpu.txt", "export.txt"), "3.11", has_starter=False),
    "load": Image(("load.txt",), "3.11", has_starter=False),
}


@dataclass(frozen=True)
class Options:
    """Write the software bills of materials of the images, as CycloneDX 1.6 in JSON."""

    out: Path = Path("dist/sbom")
    """Folder to write into, a file for each image."""
    installed: Path | None = None
    """Write nothing; compare with what an image has: a file of lines NAME==VERSION (- for standard input)."""
    image: str = "service"
    """Which image's packages these are."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(Options, arguments, prog="python -m tools.sbom")
    if options.image not in IMAGES:
        raise InvalidInput(f"--image {options.image}: one of {', '.join(IMAGES)}")
    if options.installed:
        text = sys.stdin.read() if str(options.installed) == "-" else options.installed.read_text()
        return compare(bill(options.image), text)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in IMAGES:
        file = options.out / f"{name}.cdx.json"
        document = bill(name)
        file.write_text(json.dumps(document, indent=2) + "\n")
        print(f"{file}: {len(document['components'])} components")
    return 0


def bill(name: str, machine: str = "x86_64") -> dict[str, Any]:
    """Return the document of one image. The same sources give the same bytes."""
    image = IMAGES[name]
    license_ = DisjunctiveLicense(id="Apache-2.0")
    root = Component(
        name=f"tinyrm-{name}", version=__version__, type=ComponentType.CONTAINER, licenses=[license_], bom_ref="image"
    )
    parts = [package for lock in image.locks for package in packages(LOCKS / lock, image.python, machine)]
    if image.has_starter:
        parts.append(starter())
    bom = Bom(components=parts, metadata=BomMetaData(component=root))
    bom.register_dependency(root, parts)
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    # By chance and by the clock.
    del document["serialNumber"], document["metadata"]["timestamp"]
    return document


def starter() -> Component:
    """Return the model in the image, with the hash of each of its files."""
    manifest = Manifest.model_validate_json((STARTER / "manifest.json").read_bytes())
    files = [
        Component(name=name, type=ComponentType.FILE, hashes=[sha256(digest)], bom_ref=f"starter/{name}")
        for name, digest in manifest.files.items()
    ]
    kind = ComponentType.MACHINE_LEARNING_MODEL
    return Component(name=manifest.name, version=manifest.revision, type=kind, components=files, bom_ref="starter")


def sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


def packages(lock: Path, python: str, machine: str) -> Iterator[Component]:
    """Yield the packages of a lock that apply on Linux with that Python. Any of a package's hashes may be installed."""
    system = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": machine,
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    for entry, hashes in re.findall(r"^([^\s#].*?)\s*\\\n((?:    --hash=.*\n)*)", lock.read_text(), flags=re.MULTILINE):
        requirement = Requirement(entry)
        if requirement.marker and not requirement.marker.evaluate(system):
            continue
        (pin,) = requirement.specifier
        wheels = ExternalReference(
            type=ExternalReferenceType.DISTRIBUTION,
            url=XsUri(f"{TORCH_INDEX if '+' in pin.version else PYPI}/{requirement.name}/"),
            hashes=[sha256(digest) for digest in re.findall(r"sha256:([0-9a-f]{64})", hashes)],
        )
        purl = PackageURL("pypi", name=requirement.name, version=pin.version)
        yield Component(
            name=requirement.name,
            version=pin.version,
            type=ComponentType.LIBRARY,
            purl=purl,
            bom_ref=str(purl),
            external_references=[wheels],
        )


def compare(document: dict[str, Any], installed: str) -> int:
    """Print how packages differ from the document, and return 1 if they do."""
    listed = {(one["name"], one["version"]) for one in document["components"] if one["type"] == "library"}
    lines = [line.strip().partition("==") for line in installed.splitlines() if "==" in line]
    # As indexes compare names.
    found = {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, _, version in lines}
    for name, version in sorted(listed - found):
        print(f"missing: {name}=={version}")
    for name, version in sorted(found - listed):
        print(f"not in the bill: {name}=={version}")
    if found == listed:
        print(f"{len(found)} packages, all as in the bill")
    return int(found != listed)


if __name__ == "__main__":
    sys.exit(main())
