"""Every setting of the service. Only this file reads the environment: the variable TINYRM_X sets `x`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tinyrm.api import MAX_ITEMS, MAX_RESPONSES
from tinyrm.comparison import SwapMode
from tinyrm.errors import InvalidSettings
from tinyrm.files import DEFAULT_CACHE
from tinyrm.reasoning import Reasoning

PREFIX = "TINYRM_"
# Of the command `tinyrm`, which a shell may set beside those of the service.
OF_CLIENTS = ("TINYRM_URL", "TINYRM_API_KEY")
# A longer time overflows the clocks of event loops, and no client waits for it.
DAY_S = 86_400.0
# What Kubernetes adds to every container for a Service whose name begins with `tinyrm`, such as TINYRM_SERVICE_HOST,
# TINYRM_GPU_SERVICE_PORT_HTTP, TINYRM_PORT_8000_TCP_ADDR and TINYRM_PORT=tcp://..., which has the name of a setting.
SERVICE_LINK = re.compile(
    rf"{PREFIX}(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)", re.IGNORECASE
)
LINKED_ADDRESS = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)
# What a value that pydantic refuses must be, by the type of its error.
RULES = {
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
}
UNITS = {"_s": "seconds", "_bytes": "bytes", "_tokens": "tokens", "_items": "comparisons"}

# The form in which browsers send Origin: a path, a trailing slash or a capital letter would never match.
ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^\s/A-Z]+")


class Settings(BaseSettings):
    """The settings of the service. Defaults suit one small machine."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    model: Annotated[str, BeforeValidator(lambda place: str(place) if isinstance(place, Path) else place)] = Field(
        default="models/starter",
        description="The bundle to serve: a folder, `hf://ORG/NAME@COMMIT`, or `https://HOST/NAME.tar.gz#sha256=HEX`.",
    )
    specialists: str = Field(
        default="",
        description="Further bundles, as domain=place separated by commas; each serves the requests of its domain.",
    )
    more_models: str = Field(
        default="",
        description="Places of further bundles, separated by commas; a request selects one by `model`, or uses one in "
        "a cascade.",
    )
    cache: Path = Field(
        default=Path(DEFAULT_CACHE), description="Folder for bundles that are fetched from the hub or a URL."
    )
    engine: str = Field(
        default="auto",
        description="onnxruntime-cpu, openvino-cpu, onnxruntime-cuda, onnxruntime-tensorrt or torch-cuda; "
        "auto takes the fastest one that is installed.",
    )
    precision: str = Field(default="fp32", description="Which of the bundle's precisions the engine runs.")
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Threads of one engine run; 0 divides the usable processors among the streams.",
    )
    streams: int = Field(default=1, ge=1, le=1024, description="Number of concurrent engine runs on a CPU.")
    engine_timeout_s: float = Field(
        default=5.0,
        ge=0.1,
        le=DAY_S,
        description="An engine run counts as hung after five times its expected duration plus this; "
        "the engine is then replaced.",
    )
    peak_gflops_per_s: float = Field(
        default=0,
        ge=0,
        allow_inf_nan=False,
        description="Peak that the MFU metric is relative to; 0 measures fp32 matrix products at start.",
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Processes that serve HTTP and encode; above 1, one more process owns the queue and the engine.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for all of IPv4, :: of IPv6.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one and logs it.")
    default_swap: SwapMode = Field(
        default="on",
        description="Orders that are scored if a request does not set swap. on: both, unbiased at twice the "
        "cost; off: one; auto: the second only if the first is not decisive.",
    )
    reasoning: Reasoning = Field(
        default="keep",
        description="Whether the reasoning before a response is judged with it if a request does not set reasoning. "
        "drop: parts between tags such as <think> are not read.",
    )
    max_batch_tokens: int = Field(
        default=0,
        ge=0,
        description="Maximum number of tokens, padding included, in one engine run; 0 takes the engine's own: 1024 "
        "on a CPU, which gains nothing from more, and 16384 on a GPU.",
    )
    max_queue_tokens: int = Field(
        default=1_048_576,
        gt=0,
        description="Maximum number of tokens in the queue; work beyond it is refused. One API key may have as many "
        "there as are free, so others find room.",
    )
    reuse_s: float = Field(
        default=0.0,
        ge=0,
        le=DAY_S,
        description="How long the logits of a sequence are kept for requests that need the same one, whose replies are "
        "then the same as without; 0 keeps none. Identical sequences of one batch run once in any case.",
    )
    max_reuse_bytes: int = Field(
        default=64 * 2**20,
        gt=0,
        description="Maximum size of what TINYRM_REUSE_S keeps of one model; the least recently used leaves first.",
    )
    max_wait_s: float = Field(
        default=10.0,
        ge=0.01,
        le=DAY_S,
        description="Work that would wait longer than this for its turn, at the current rates of encoding and of the "
        "engine, is refused. Lists and groups are accepted or refused as a whole.",
    )
    overload_status: Literal["429", "503"] = Field(
        default="429", description="HTTP status of a refusal under overload; 503 for trainers that retry on 5xx only."
    )
    max_batch_items: int = Field(
        default=2048, gt=0, le=MAX_ITEMS, description="Maximum number of comparisons in one call of /v1/compare/batch."
    )
    max_body_bytes: int = Field(default=8 * 2**20, ge=128, description="Maximum size of a request body.")
    max_buffered_bytes: int = Field(
        default=256 * 2**20,
        ge=128,
        description="Maximum total size of the request bodies in memory, in one process; further bodies are refused.",
    )
    max_header_bytes: int = Field(
        default=32 * 2**10, ge=1024, description="Maximum size of the request line and the headers together."
    )
    header_timeout_s: float = Field(
        default=10.0, ge=0.1, le=DAY_S, description="Time for a client to send a request's headers."
    )
    body_timeout_s: float = Field(
        default=30.0,
        ge=0.1,
        le=DAY_S,
        description="Time for a client to send a request's body, and to resume reading a reply.",
    )
    keep_alive_s: float = Field(
        default=75.0,
        ge=0.1,
        le=DAY_S,
        description="How long a connection stays open without a request. More than the pools of clients and balancers "
        "keep it, mostly 60 s or less: a request on a connection that is being closed is lost.",
    )
    max_connections: int = Field(
        default=16_384,
        gt=0,
        le=2**20,
        description="Maximum number of open connections of one process; a request on a further one gets 503. "
        "A lower limit on open files lowers it.",
    )
    api_keys_file: Path | None = Field(
        default=None, description="File made by `python -m service.keys`; without it, requests need no key."
    )
    cors_origins: str | None = Field(
        default=None, description="Origins that may call the service from a browser, separated by commas; `*` for all."
    )
    dialects: str = Field(
        default="",
        description="APIs of trainers, rerankers and other servers to offer, separated by commas: openrlhf, slime, "
        "verl, nemo-gym, rerank, vllm, sglang, llamafactory; see docs/dialects.md.",
    )
    unknown_models: Literal["refuse", "default"] = Field(
        default="refuse",
        description="What the dialects rerank and vllm do with the name of a model that is not served. refuse: 404. "
        "default: the domain's or the default model scores, for clients that must name a model of another server.",
    )
    group_size: int = Field(
        default=8,
        ge=1,
        le=MAX_RESPONSES,
        description="Samples of one prompt that are scored together (a cohort) if a trainer sends them one by one; "
        "with 1, every reward is neutral. A model that scores responses alone needs no cohorts.",
    )
    cohort_timeout_s: float = Field(
        default=30.0,
        ge=0.01,
        le=DAY_S,
        description="How long a cohort's first sample waits for the others; then TINYRM_PARTIAL_COHORTS applies.",
    )
    partial_cohorts: Literal["score", "refuse"] = Field(
        default="score",
        description="What happens to a cohort that is incomplete after its timeout. score: its samples are compared "
        "with each other, and a single one gets reward 0. refuse: 503, so that the trainer sends them again.",
    )
    max_open_cohorts: int = Field(default=4096, gt=0, description="Maximum number of cohorts that wait for samples.")
    max_cohort_bytes: int = Field(
        default=64 * 2**20,
        gt=0,
        description="Maximum total size of cohorts, each counted as TINYRM_GROUP_SIZE times its first sample, from "
        "then until it is scored; a further cohort is refused.",
    )
    max_cohort_wait_s: float = Field(
        default=90.0,
        ge=0.01,
        le=DAY_S,
        description="A new cohort is refused if those before it take longer than this, at the pace of the last ones. "
        "Less than the trainer's own timeout (120 s in slime, 180 s in OpenRLHF).",
    )
    drain_timeout_s: float = Field(
        default=20.0, ge=0, le=DAY_S, description="Time to finish accepted work after SIGTERM."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Lowest level to log.")
    log_format: Literal["json", "text"] = Field(
        default="json", description="One JSON object per line, or text for people."
    )
    access_log: Literal["on", "off"] = Field(default="on", description="One line per request, without its texts.")
    otlp_endpoint: str | None = Field(
        default=None,
        description="Base address of an OpenTelemetry collector (OTLP over HTTP) that receives traces.",
    )

    @model_validator(mode="before")
    @classmethod
    def drop_empty(cls, values: Any) -> Any:
        """Treat an empty variable as one that is not set: compose and Helm pass on a variable that nobody has set."""
        texts = {name: value.strip() if isinstance(value, str) else value for name, value in dict(values).items()}
        if texts.get("api_keys_file") == "":
            raise ValueError("api_keys_file is empty; unset it to serve without keys")
        if isinstance(texts.get("port"), str) and LINKED_ADDRESS.match(texts["port"]):
            del texts["port"]  # of Kubernetes
        return {name: value for name, value in texts.items() if value != ""}

    @field_validator("host")
    @classmethod
    def check_host(cls, host: str) -> str:
        address = host.removeprefix("[").removesuffix("]") if ":" in host else host  # [::1], as in a URL
        if not re.fullmatch(r"[\w.:%-]+", address):
            raise ValueError("host must be an address or a name, such as 127.0.0.1, 0.0.0.0, ::1 or localhost")
        return address

    @field_validator("otlp_endpoint")
    @classmethod
    def check_endpoint(cls, address: str | None) -> str | None:
        if address and not re.fullmatch(r"https?://\S+", address):
            raise ValueError("the address of a collector begins with http:// or https://")
        return address

    @field_validator("cors_origins")
    @classmethod
    def check_origins(cls, origins: str | None) -> str | None:
        wrong = [origin for origin in split_list(origins) if not ORIGIN.fullmatch(origin)]
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)}: an origin is https://host or https://host:port, without anything after it"
            )
        return origins

    @model_validator(mode="after")
    def check_queue_size(self) -> Self:
        if self.max_queue_tokens < self.max_batch_tokens:
            raise ValueError("max_queue_tokens must be at least max_batch_tokens, or a full batch could not wait")
        return self

    @model_validator(mode="after")
    def check_buffer_size(self) -> Self:
        if self.max_buffered_bytes < self.max_body_bytes:
            raise ValueError("max_buffered_bytes must be at least max_body_bytes, or a full body could not be read")
        return self

    @property
    def max_sequence_tokens(self) -> int:
        """The longest sequence that fits into a batch and into the queue."""
        return min(self.max_batch_tokens or self.max_queue_tokens, self.max_queue_tokens)

    def check_against(self, max_tokens: int) -> None:
        """Raise InvalidSettings if a comparison of the model's full length could never run."""
        if self.max_batch_tokens and self.max_batch_tokens < 2 * max_tokens:
            raise InvalidSettings(
                f"{PREFIX}MAX_BATCH_TOKENS={self.max_batch_tokens} is too small: both orders of one comparison "
                f"take up to {2 * max_tokens} tokens in this model"
            )
        if self.max_queue_tokens < 2 * max_tokens:
            raise InvalidSettings(
                f"{PREFIX}MAX_QUEUE_TOKENS={self.max_queue_tokens} is too small: both orders of one comparison "
                f"take up to {2 * max_tokens} tokens in this model"
            )


def split_list(text: str | None) -> list[str]:
    """Return the parts between the commas, without blanks around them."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Return the settings of this process's environment. Raises InvalidSettings with one line."""
    refuse_unknown(environment)
    try:
        return Settings()
    except ValidationError as error:
        raise InvalidSettings(describe_settings(error)) from None


def describe_settings(error: ValidationError) -> str:
    """Return what is wrong with each setting, in one line, with the names of the variables."""
    return "; ".join(_describe_setting(one) for one in error.errors(include_url=False))


def _describe_setting(error: Any) -> str:
    reason = str(error["ctx"]["error"]) if error["type"] == "value_error" else error["msg"]
    if rule := RULES.get(error["type"]):
        reason = f"it must be {rule.format(**error.get('ctx', {}))}"
    # The sentences of the validators above name other settings by their fields.
    names = "|".join(name for name in Settings.model_fields if "_" in name)
    reason = re.sub(rf"\b({names})\b", lambda found: PREFIX + found[0].upper(), reason)
    if not error["loc"]:
        return reason
    name = str(error["loc"][0])
    variable, value = PREFIX + name.upper(), str(error["input"])
    # An address of a collector may hold a password.
    shown = variable if name == "otlp_endpoint" else f"{variable}={value[:80]!r}"
    unit = next((f" ({unit})" for suffix, unit in UNITS.items() if name.endswith(suffix)), "")
    return f"{shown} is not supported: {reason[0].lower()}{reason[1:]}{unit}"


def refuse_unknown(environment: Mapping[str, str]) -> None:
    """Raise InvalidSettings for a TINYRM_ variable that is not a setting, because it is most likely misspelled."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(
        name
        for name, value in environment.items()
        if name.upper().startswith(PREFIX)
        and name.upper() not in known
        and name not in OF_CLIENTS
        and not SERVICE_LINK.fullmatch(name)
        and not LINKED_ADDRESS.match(value)
    )
    if unknown:
        raise InvalidSettings(f"unknown settings {', '.join(unknown)}; known: {', '.join(sorted(known))}")
