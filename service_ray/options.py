"""What serve.yaml may say in `args`, checked when the application is deployed."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from service.dialects.table import spoken
from service.settings import Settings
from tinyrm.errors import InvalidSettings

# Ray has the processes and Serve's proxy the connections.
OF_A_SERVER = frozenset(("model", "workers", "host", "port", "max_connections", "max_header_bytes", "header_timeout_s"))


class Options(BaseModel):
    """Of the application; how many replicas there are and what each is given stands beside it, in Serve's own words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: str = Field(
        default="models/starter",
        description="Folder of the bundle on every node, or an address that fsspec knows: s3://, gs://, hf://, file://.",
    )
    store: Path = Field(
        default=Path("/tmp/tinyrm-models"),  # noqa: S108 - a cache, verified by hashes whenever it is opened
        description="Folder of each node for what is fetched from an address.",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Settings of the service, by their names without TINYRM_, in small letters."
    )
    max_tries: int = Field(
        default=4, ge=1, description="Replicas that get a request, one after the other, while each is lost with it."
    )

    @field_validator("settings")
    @classmethod
    def _are_settings(cls, given: dict[str, Any]) -> dict[str, Any]:
        settings_of(given)
        return given


def settings_of(given: dict[str, Any], **more: Any) -> Settings:
    """Raises ValueError, with what is wrong and what to do."""
    others = sorted(OF_A_SERVER & set(given))
    if others:
        raise ValueError(f"settings: {', '.join(others)} belong to a server of one machine; Serve has its own for them")
    try:
        settings = Settings(**given, **more)
        alone = [dialect.name for dialect in spoken(settings) if dialect.has_cohorts]
    except (ValidationError, InvalidSettings) as error:
        raise ValueError(f"settings: {error}") from error
    if alone:
        raise ValueError(
            f"settings: dialects {', '.join(alone)} need one process: samples of one cohort would arrive at different "
            "replicas and never meet; run `python -m service` for them"
        )
    return settings
