"""A trained model as one folder: opened only if no file in it has changed, written as a whole or not at all."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError
from tokenizers import Tokenizer

from tinyrm.encoding import Encoder
from tinyrm.errors import InvalidBundle, InvalidInput, TamperedBundle, UnknownSchema, describe
from tinyrm.files import write_atomically
from tinyrm.manifest import CARD_FILE, MANIFEST_FILE, READABLE, TOKENIZER_FILE, Calibration, DomainTemperature, Manifest


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened, verified bundle.

    files: paths of private copies by name; a file without one is read from the folder.
    """

    folder: Path
    manifest: Manifest
    files: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Verify every file and open. Raises InvalidBundle, UnknownSchema, TamperedBundle."""
        bundle = cls.unverified(folder)
        bundle.verify(bundle.manifest.files)
        return bundle

    @classmethod
    def unverified(cls, folder: str | Path) -> Self:
        """Open without reading the files, for a caller that verifies them. Raises InvalidBundle, UnknownSchema."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest.revision != manifest.expected_revision():
            raise TamperedBundle(f"{folder / MANIFEST_FILE} was changed after it was written; export the bundle again")
        for name in manifest.files:
            if not (folder / name).is_file():
                raise InvalidBundle(f"{folder / name} is missing; export the bundle again")
        return cls(folder, manifest)

    def verify(self, names: Iterable[str]) -> None:
        """Compare files with their hashes in the manifest. Raises InvalidBundle, TamperedBundle."""
        for name in names:
            shown = self.folder / name
            try:
                found = sha256(self.path(name))
            except OSError as error:
                raise InvalidBundle(f"{shown} cannot be read: {error}") from error
            if found != self.manifest.files[name]:
                raise TamperedBundle(
                    f"{shown} does not match its hash in {MANIFEST_FILE}; fetch or export the bundle again"
                )

    def path(self, name: str) -> Path:
        """Return the path of a file of this bundle."""
        return self.files.get(name, self.folder / name)

    def encoder(self) -> Encoder:
        """Return the encoder that turns comparisons into ids for this model. Raises InvalidBundle."""
        manifest = self.manifest
        try:
            tokenizer = Tokenizer.from_file(str(self.path(TOKENIZER_FILE)))
        except Exception as error:  # the library raises Exception itself
            raise InvalidBundle(f"{self.folder / TOKENIZER_FILE} cannot be read: {error}") from error
        encoder = Encoder(
            tokenizer,
            manifest.spec.template,
            manifest.special_tokens,
            manifest.spec.max_tokens,
            scores_alone=manifest.head.scores_alone,
        )
        if manifest.label_ids and encoder.label_ids != manifest.label_ids:
            raise InvalidBundle(f"the label words have ids {encoder.label_ids}; the manifest has {manifest.label_ids}")
        return encoder

    def model_file(self, precision: str, engine: str | None = None) -> Path:
        """Return the ONNX file of a precision, the engine's own if there is one. Raises InvalidBundle."""
        precisions = self.manifest.precisions
        if precision not in precisions:
            raise InvalidBundle(
                f"no precision {precision!r} in {self.manifest.identity}; it has: {', '.join(precisions)}"
            )
        own = self.manifest.specialised.get(engine or "", {})
        return self.folder / own.get(precision, precisions[precision])

    def weights_file(self) -> Path:
        """Return the weights for engines that run no graph. Raises InvalidBundle if there are none."""
        if self.manifest.weights is None:
            raise InvalidBundle(f"{self.manifest.identity} has no weights for torch; export it with --weights")
        return self.folder / self.manifest.weights


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest in `folder`, unverified. Raises InvalidBundle, UnknownSchema."""
    if not folder.is_dir():
        raise InvalidBundle(
            f"{folder} is not a folder; name a bundle: models/starter, hf://ORG/NAME@COMMIT, or a URL with its hash"
        )
    try:
        content = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
        version = json.loads(content)["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidBundle(f"{folder} has no readable {MANIFEST_FILE}: {error}") from error
    if version not in READABLE:
        raise UnknownSchema(
            f"{folder} has schema {version!r}; {' and '.join(map(str, READABLE))} can be opened; export it again"
        )
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise InvalidBundle(f"{folder / MANIFEST_FILE}: {describe(error)}") from error


def write_bundle(
    folder: Path, files: Mapping[str, Path], fields: Mapping[str, Any], card: Path | None = None
) -> Manifest:
    """Copy `files` (name -> source) to `folder`, with a manifest of `fields`, their hashes and the revision.

    Written beside the target and renamed into place, so a reader never sees a part of a bundle. The model card becomes
    README.md and may be edited afterwards: it has no hash.

    Raises InvalidBundle if `folder` holds something else.
    """
    refuse_foreign(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, source in files.items():
            shutil.copyfile(source, staging / name)
        hashes = {name: sha256(staging / name) for name in files}
        manifest = Manifest(**fields, files=hashes).with_revision()
        (staging / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        if card:
            shutil.copyfile(card, staging / CARD_FILE)
        staging.chmod(0o755)
        swap_in(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def refuse_foreign(folder: Path) -> None:
    """Raise InvalidBundle if `folder` exists and is not a bundle: writing one there would delete what it holds."""
    if folder.exists() and not (folder / MANIFEST_FILE).is_file():
        raise InvalidBundle(f"{folder} exists and is not a bundle; it would be replaced: choose another folder")


def record_evaluation(folder: Path, results: Mapping[str, Any]) -> None:
    """Add evaluation results to a bundle's manifest; the revision stays, since they change no score."""
    manifest = Bundle.open(folder).manifest
    manifest = manifest.model_copy(update={"evaluation": {**manifest.evaluation, **results}})
    write_atomically(folder / MANIFEST_FILE, manifest.to_json())


def record_temperature(
    folder: Path,
    temperature: float,
    calibration: Calibration | None = None,
    temperatures: Mapping[str, DomainTemperature] | None = None,
) -> Manifest:
    """Give a bundle another calibration temperature, and so another revision: its probabilities change.

    The margin of `swap: auto` is in calibrated log-odds and is rescaled. Evaluation results are removed, except those
    of the training: they belong to the old probabilities.

    calibration: the pairs that the temperature was fitted on, and with it that of one order.
    temperatures: of the domains that have their own.
    """
    manifest = Bundle.open(folder).manifest
    auto, kept = manifest.auto_swap, {k: v for k, v in manifest.evaluation.items() if k == "held_out"}
    if chosen := kept.get("held_out", {}).get("chosen_on"):
        kept = {"held_out": {**kept["held_out"], "chosen_on": [what for what in chosen if what != "temperature"]}}
    if auto:
        auto = auto.model_copy(update={"margin": auto.margin * manifest.temperature / temperature})
    changed = manifest.model_copy(
        update={
            "temperature": temperature,
            "temperature_one_order": calibration.temperature_one_order if calibration else None,
            "temperatures": dict(temperatures or {}),
            "auto_swap": auto,
            "calibration": calibration,
            "evaluation": kept,
        }
    )
    changed = changed.with_revision()
    write_atomically(folder / MANIFEST_FILE, changed.to_json())
    return changed


def sha256(path: Path) -> str:
    """Return the hash of a file. Raises InvalidInput for a pipe: what reads it once leaves nothing to hash."""
    if path.is_fifo():
        raise InvalidInput(f"{path} is a pipe, which cannot be read twice; write it into a file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of_pairs(path: Path | None) -> str | None:
    """Return the hash of a file of pairs; None for a pipe, which has been read."""
    return sha256(path) if path and path.is_file() else None


def swap_in(staging: Path, folder: Path) -> None:
    """Rename `staging` to `folder`; if that fails, the bundle that was there stays."""
    if not folder.exists():
        staging.rename(folder)
        return
    old = staging.with_name(staging.name + "-old")
    folder.rename(old)
    try:
        staging.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)
