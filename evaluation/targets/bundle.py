"""A bundle on an engine of this machine."""

from pathlib import Path

from evaluation.target import Meter, MeteredEngine, Target, local_scorer
from tinyrm.bundle import Bundle
from tinyrm.counting import flop_counter
from tinyrm.engines import EngineOptions, open_engine
from tinyrm.scorer import Scorer


def open_bundle(folder: Path, engine: str = "auto") -> Target:
    """Open a bundle. Raises what `Bundle.open` and `open_engine` raise."""
    bundle = Bundle.open(folder)
    manifest, meter = bundle.manifest, Meter()
    count_flops = flop_counter(manifest.geometry, manifest.head, manifest.special_tokens)
    opened = open_engine(bundle, EngineOptions(engine))
    metered = MeteredEngine(opened, manifest.geometry, manifest.parameters, count_flops, meter)
    scorer = Scorer(bundle.encoder(), metered, manifest.spec, manifest.calibrated)
    domains = manifest.calibrated.domains
    return Target(manifest.identity, metered.info.name, manifest.spec, local_scorer(scorer), meter, domains=domains)
