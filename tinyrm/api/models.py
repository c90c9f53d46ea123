"""GET /v1/models, /health, /healthz and /readyz."""

from typing import Literal

from pydantic import Field

from tinyrm.api.base import Reply


class ScoreScale(Reply):
    """Logits of held-out responses: `score` is (logit - mean) / std."""

    mean: float = Field(description="Mean of the logits.")
    std: float = Field(description="Their standard deviation.")
    responses: int = Field(description="How many were scored.")


class Accuracy(Reply):
    """The share of validation pairs whose better response a model prefers, with its 95 % interval."""

    value: float = Field(description="The share.")
    low: float = Field(description="Lower end of the interval.")
    high: float = Field(description="Upper end of the interval.")
    pairs: int = Field(description="How many were judged.")


class ModelCard(Reply):
    """A served model and the engine it runs on."""

    name: str = Field(description="Name of the bundle.")
    revision: str = Field(description="Hash of what decides its results; requests may name name@revision.")
    default: bool = Field(description="Whether it answers requests that name no model and no specialist's domain.")
    demo: bool = Field(default=False, description="Whether it shows the product and is too weak for real work.")
    accuracy: Accuracy | None = Field(
        default=None, description="On the validation pairs of its bundle, of all domains; null if it was not measured."
    )
    reads: Literal["pair", "response", "set"] = Field(
        description="What one sequence holds. pair: the prompt and two responses. response: the prompt and one "
        "response, so n responses cost n sequences. set: the prompt and any number of responses."
    )
    scores_alone: bool = Field(
        description="Whether the score of a response depends on no other one, so that /v1/score replies: always if "
        "`reads` is response, and for some models that read sets."
    )
    head: str = Field(description="What makes logits from the encoder's output: cloze, pair or score.")
    activation: Literal["identity", "sigmoid"] = Field(description="Of `raw` in replies of /v1/score.")
    score_scale: ScoreScale | None = Field(description="Of `score` in replies of /v1/score.")
    domains: dict[str, str] = Field(description="Domain -> its instruction.")
    truncation: dict[str, Literal["start", "ends"]] = Field(
        default={}, description="Domain -> what is kept of a response that is too long: its start, or both ends."
    )
    default_domain: str = Field(description="That of a request without a domain.")
    template: str = Field(description="Name of the template that makes a sequence of texts.")
    max_tokens: int = Field(description="Most tokens of a sequence; of a set, of its prompt with any one response.")
    parameters: int = Field(description="Number of the model's parameters.")
    temperature: float = Field(description="Divides the margin, so that probabilities are calibrated.")
    temperatures: dict[str, float] = Field(
        description="Of domains, if some need their own; `temperature` is that of all others."
    )
    temperature_one_order: float | None = Field(
        default=None,
        description="Divides the margin where one order alone was scored: with `swap: off`, or `auto` where the first "
        "one was enough. Null: `temperature` does.",
    )
    temperatures_one_order: dict[str, float] = Field(default={}, description="The same of domains.")
    engine: str = Field(description="What runs the model.")
    precision: str = Field(description="In which numbers: fp32, bf16 or int8.")


class ModelEntry(Reply):
    """A served model as OpenAI's API lists it."""

    id: str = Field(description="Its name, which requests may have in `model`.")
    object: Literal["model"] = Field(default="model", description="As in OpenAI's API.")
    created: int = Field(description="When its bundle was made, in seconds since 1970.")
    owned_by: str = Field(default="tinyrm", description="As in OpenAI's API.")


class ModelList(Reply):
    models: list[ModelCard] = Field(description="The models, the default first.")
    object: Literal["list"] = Field(default="list", description="As in OpenAI's API.")
    data: list[ModelEntry] = Field(default=[], description="The same models for clients of OpenAI's API.")


class Status(Reply):
    status: str = Field(description="ok, or ready.")
