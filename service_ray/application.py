"""The Ray Serve application of serve.yaml: an ingress in front of replicas of the service."""

from ray import serve
from ray.serve import Application

from service_ray.config import RayConfig
from service_ray.ingress import Ingress
from service_ray.replica import Replica


def build(config: RayConfig) -> Application:
    """Return the application. Numbers, resources and limits of its two deployments are in serve.yaml."""
    replicas = serve.deployment(Replica, name="Scorer").bind(config)
    return serve.deployment(Ingress, name="Ingress").bind(config, replicas)
