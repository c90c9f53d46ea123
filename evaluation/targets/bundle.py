"""A bundle on an engine of this machine."""

from pathlib import Path

from evaluation.target import Meter, MeteredEngine, Target, local_scorer
from tinyrm.bundle import Bundle
from tinyrm.engines import EngineOptions, open_engine
from tinyrm.scorer import Scorer


def open_bundle(folder: Path, engine: str = "auto") -> Target:
    """Open a bundle. Raises what `Bundle.open` and `open_engine` raise."""
    bundle = Bundle.open(folder)
    manifest, meter = bundle.manifest, Meter()
    metered = MeteredEngine(open_engine(bundle, EngineOptions(engine)), manifest.geometry, manifest.parameters, meter)
    scorer = Scorer(bundle.encoder(), metered, manifest.spec, manifest.temperature)
    return Target(manifest.identity, metered.info.name, manifest.spec, local_scorer(scorer), meter)
