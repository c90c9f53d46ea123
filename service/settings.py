"""The only reader of the environment. Every setting is a variable TINYRM_<NAME>; an unknown one is an error."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tinyrm.api import MAX_ITEMS, MAX_RESPONSES
from tinyrm.comparison import SwapMode
from tinyrm.errors import InvalidSettings

PREFIX = "TINYRM_"
# What browsers send as Origin; with a path, a slash at the end or capitals it would never match.
ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^\s/A-Z]+")


class Settings(BaseSettings):
    """Defaults suit one small machine."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    model: Path = Field(default=Path("models/starter"), description="Folder of the bundle to serve.")
    specialists: str = Field(
        default="",
        description="Further bundles, as domain=folder separated by commas: a request of that domain is theirs.",
    )
    engine: str = Field(
        default="auto",
        description="onnxruntime-cpu, openvino-cpu, onnxruntime-cuda, onnxruntime-tensorrt or torch-cuda; "
        "auto takes the fastest one present.",
    )
    precision: str = Field(default="fp32", description="Which of the bundle's precisions to run.")
    threads: int = Field(
        default=0, ge=0, description="Threads of one engine run; 0: the usable processors, shared among the streams."
    )
    streams: int = Field(default=1, ge=1, description="Engine runs at once, on a CPU.")
    engine_timeout_s: float = Field(
        default=5.0,
        gt=0,
        description="An engine run that takes this much longer than five times what its tokens should has hung: "
        "the engine is replaced.",
    )
    peak_gflops_per_s: float = Field(
        default=0,
        ge=0,
        description="Peak that the MFU metric is a share of; 0: fp32 matrix products, measured at start.",
    )
    workers: int = Field(
        default=1,
        ge=1,
        description="Processes that speak HTTP and encode; above 1 they feed one more process, which has the queue.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0: any free one, named in the log.")
    default_swap: SwapMode = Field(
        default="on",
        description="Which orders are read when a request does not say. on: both, unbiased at twice the cost; "
        "off: one; auto: the second where the first is not sure.",
    )
    max_batch_tokens: int = Field(
        default=0,
        ge=0,
        description="Most tokens, padding included, of one engine run; 0: what suits the engine, 1024 on a CPU, "
        "which gains nothing from more, and 16384 on a GPU.",
    )
    max_queue_tokens: int = Field(default=1_048_576, gt=0, description="Most waiting tokens; above it work is refused.")
    max_wait_s: float = Field(
        default=10.0, gt=0, description="Work that would wait longer, by the engine's present rate, is refused."
    )
    overload_status: Literal["429", "503"] = Field(
        default="429", description="Status of a refusal when too much waits; 503 for trainers that retry on 5xx only."
    )
    max_batch_items: int = Field(
        default=2048, gt=0, le=MAX_ITEMS, description="Most comparisons in one call of /v1/compare/batch."
    )
    max_body_bytes: int = Field(default=8 * 2**20, gt=0, description="Largest request body.")
    max_buffered_bytes: int = Field(
        default=256 * 2**20,
        gt=0,
        description="Most bytes of all request bodies that are being read or answered, in one process; "
        "above it bodies are refused.",
    )
    max_header_bytes: int = Field(default=32 * 2**10, gt=0, description="Largest request line and headers together.")
    header_timeout_s: float = Field(default=10.0, gt=0, description="Time for a client to send a request's headers.")
    body_timeout_s: float = Field(
        default=30.0, gt=0, description="Time for a client to send a request's body, and to read on in a reply."
    )
    max_connections: int = Field(
        default=16_384,
        gt=0,
        description="Open connections of one process; a request on a further one gets 503. "
        "Fewer if the limit on open files allows fewer.",
    )
    api_keys_file: Path | None = Field(
        default=None, description="File of `python -m service.keys`; not set: no key is asked for."
    )
    cors_origins: str | None = Field(
        default=None, description="Origins whose pages may call from a browser, separated by commas; `*` for all."
    )
    dialects: str = Field(
        default="",
        description="What trainers and rerankers speak, separated by commas: openrlhf, slime, verl, nemo-gym, rerank; "
        "see docs/dialects.md.",
    )
    group_size: int = Field(
        default=8,
        ge=2,
        le=MAX_RESPONSES,
        description="Samples of one prompt that are judged together when a dialect sends them one by one: a cohort.",
    )
    cohort_timeout_s: float = Field(
        default=30.0,
        gt=0,
        description="How long a cohort's first sample waits for the others; then those that are there are judged.",
    )
    max_open_cohorts: int = Field(default=4096, gt=0, description="Most cohorts that wait for samples.")
    max_cohort_bytes: int = Field(
        default=64 * 2**20, gt=0, description="Most bytes of samples that wait for their cohorts or are judged."
    )
    drain_timeout_s: float = Field(default=20.0, ge=0, description="Time to finish accepted work after SIGTERM.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level to log.")
    log_format: Literal["json", "text"] = Field(
        default="json", description="One JSON object a line, or text for people."
    )
    access_log: Literal["on", "off"] = Field(default="on", description="One line for each request, without its texts.")
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^(https?://\S+)?$",
        description="Base address of an OpenTelemetry collector (OTLP over HTTP), which then gets traces.",
    )

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_origins(cls, origins: str | None) -> str | None:
        wrong = [origin for origin in split_list(origins) if not ORIGIN.fullmatch(origin)]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: an origin is https://host or https://host:port, nothing after it")
        return origins

    @model_validator(mode="after")
    def _queue_holds_a_batch(self) -> Self:
        if self.max_queue_tokens < self.max_batch_tokens:
            raise ValueError("max_queue_tokens has to be at least max_batch_tokens, or no full batch could ever wait")
        return self

    @model_validator(mode="after")
    def _a_body_fits(self) -> Self:
        if self.max_buffered_bytes < self.max_body_bytes:
            raise ValueError("max_buffered_bytes has to be at least max_body_bytes, or no full body could ever be read")
        return self

    def check_against(self, max_tokens: int) -> None:
        """Raise InvalidSettings if a comparison of the model's full length could never run."""
        if self.max_batch_tokens and self.max_batch_tokens < 2 * max_tokens:
            raise InvalidSettings(
                f"{PREFIX}MAX_BATCH_TOKENS={self.max_batch_tokens} is too small: both orders of one comparison "
                f"take up to {2 * max_tokens} tokens in this model"
            )


def split_list(text: str | None) -> list[str]:
    """What stands between the commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def refuse_unknown(environment: Mapping[str, str]) -> None:
    """Raise InvalidSettings for a TINYRM_ variable that is no setting: most likely a typing error."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise InvalidSettings(f"unknown settings {', '.join(unknown)}; known: {', '.join(sorted(known))}")
