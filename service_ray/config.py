"""The `args` of serve.yaml, checked when the application is deployed."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from service.dialects.table import enabled_dialects
from service.settings import Settings, describe_settings
from tinyrm.errors import InvalidSettings

# Ray manages the processes, and Serve's proxy the connections.
SERVER_SETTINGS = frozenset(
    ("model", "workers", "host", "port", "max_connections", "max_header_bytes", "header_timeout_s")
)


class RayConfig(BaseModel):
    """Arguments of the application. Serve's own options set the replicas and their resources."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: str = Field(
        default="models/starter",
        description="Folder of the bundle on every node, or an address for fsspec: s3://, gs://, hf://, file://.",
    )
    revision: str | None = Field(
        default=None,
        description="Revision that the bundle must have. A replica that finds another one does not start: a folder or "
        "an address may change between the starts of two replicas.",
    )
    store: Path = Field(
        default=Path("/tmp/tinyrm-models"),  # noqa: S108  # a cache; hashes are verified whenever a bundle is opened
        description="Folder on each node for bundles fetched from an address.",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Settings of the service, by their names in lower case without TINYRM_."
    )
    max_tries: int = Field(
        default=4,
        ge=1,
        description="Maximum number of replicas that a request is sent to, if one after the other is lost.",
    )

    @field_validator("settings")
    @classmethod
    def check_settings(cls, given: dict[str, Any]) -> dict[str, Any]:
        make_settings(given)
        return given


def make_settings(given: dict[str, Any], **more: Any) -> Settings:
    """Return the service's settings. Raises ValueError with the reason and a remedy.

    given: settings of serve.yaml, by name.
    more: settings that a replica sets itself.
    """
    others = sorted(SERVER_SETTINGS & set(given))
    if others:
        raise ValueError(
            f"settings: {', '.join(others)} are for a server on one machine; Serve has its own options for them"
        )
    try:
        settings = Settings(**given, **more)
        enabled_dialects(settings)
    except ValidationError as error:
        raise ValueError(f"settings: {describe_settings(error)}") from error
    except InvalidSettings as error:
        raise ValueError(f"settings: {error}") from error
    return settings
