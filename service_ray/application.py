"""The application that serve.yaml names: an ingress before replicas of the scorer."""

from ray import serve
from ray.serve import Application

from service_ray.ingress import Ingress
from service_ray.options import Options
from service_ray.scorer import Scorer


def build(options: Options) -> Application:
    """What Serve runs. Counts, resources and limits of the two stand in serve.yaml."""
    scorers = serve.deployment(Scorer, name="Scorer").bind(options)
    return serve.deployment(Ingress, name="Ingress").bind(options, scorers)
