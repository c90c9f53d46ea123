"""Complete the OpenAPI document with what routes do not state: names, headers, examples, the types of errors."""

import json
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from fastapi.routing import APIRoute

from service.errors import status_by_type
from service.scoring.models import ModelRegistry

EXAMPLES_FILE = Path(__file__).with_name("examples.json")
INTRODUCTION = "\n\n".join(
    (
        "TinyRM judges the responses of language models: which of two is better, how several rank, and which reward "
        "each deserves.",
        "**Requests** are JSON objects. A prompt, and each response, is a text or a list of chat messages in the form "
        "of OpenAI's API, with tool calls and their results. Unknown fields are refused, so that a misspelt option is "
        "an error.",
        "**Replies** may have more fields in a later version; a client must ignore those that it does not know.",
        '**Errors** have one shape: `{"error": {"type": "...", "message": "..."}}`. `type` is stable and for programs; '
        "`message` states what to do. 429 and 503 come with `Retry-After`: the same request may succeed after so many "
        "seconds.",
        "**Keys**: where the service requires them, send `Authorization: Bearer <key>`; each operation names the scope "
        "it needs.",
        "**Time limits**: with `X-Request-Timeout-Ms` the service drops work that would be late, and replies with 504.",
        "**Tracing**: the service logs each request with an id and returns it as `X-Request-Id`. A request may bring "
        "its own id in this header.",
    )
)
# Tag -> its title and what it holds.
TAGS = {
    "score": ("Scoring", "Compare, rank and score responses, and count their tokens."),
    "about": ("Models", "The models that are served."),
    "health": ("Health", "Whether the service is alive and ready, and its metrics."),
    "admin": ("Administration", "Operations of the service, for keys with the scope `admin`."),
    "openrlhf": ("OpenRLHF", "The remote reward model of OpenRLHF."),
    "slime": ("slime and miles", "The remote reward model of slime and miles."),
    "verl": ("verl, vLLM and SGLang", "Rewards of whole dialogues, as verl requests them."),
    "sglang": ("SGLang", "Rewards of whole dialogues, as SGLang returns them."),
    "vllm": ("vLLM", "Scores and rewards in the formats of vLLM."),
    "nemo-gym": ("NeMo-Gym", "The resources server of NeMo-Gym that compares responses."),
    "rerank": ("Reranking", "Documents by relevance, in the formats of text-embeddings-inference, Cohere and Jina."),
    "llamafactory": ("LLaMA-Factory", "The reward server of LLaMA-Factory."),
}
# One message of each type that an operation may return, as the service writes it.
MESSAGES = {
    "body_timeout": "the body was not complete after 30 s",
    "body_too_large": "the body is larger than 8 MiB; send less at once",
    "deadline_exceeded": "the request's own time limit passed before it was queued",
    "engine_failed": "expected two finite logits for each order or response, got [[nan, nan]]",
    "engine_hung": "the engine did not reply within 30.0 s; it is being restarted",
    "engine_restarting": "the engine failed and is being restarted; try again",
    "forbidden": "this key lacks the scope score",
    "incomplete_group": "not all samples of this group arrived in time",
    "instruction_too_long": "the instruction takes 501 of 512 tokens and is never truncated; shorten it",
    "internal_error": "an unexpected error; the log has the details",
    "invalid_input": "items: 5000 comparisons in one call, at most 4096 are accepted; split the list",
    "invalid_json": "the body is not JSON: Expecting ',' delimiter",
    "invalid_request": "response_b: Field required",
    "invalid_text": "prompt: Input should be a valid string, unable to parse raw data as a unicode string",
    "no_cascade": "a cascade needs one model that scores responses alone and one that reads a pair",
    "not_pointwise": "mine@1b4e28ba2fa1 compares two responses and cannot score one alone; /v1/rewards returns rewards "
    "of several responses, relative to each other",
    "not_ready": "the engine has not run yet",
    "overloaded": "new work would wait 12.4 s, more than 10 s; retry after Retry-After",
    "shutting_down": "the service is shutting down; send the request to another replica",
    "too_many_connections": "too many connections are open; close some, or try again after Retry-After",
    "unauthorized": "send a key: Authorization: Bearer <key>",
    "unavailable": "there are no replicas; the application could not be deployed",
    "unknown_domain": "no domain 'cooking' in this model; it has: chat, reasoning, safety",
    "unknown_model": "no model 'gpt' is served here; available: starter@5f837f666255",
    "unsupported_encoding": "Content-Encoding 'gzip' is not supported; send the body as it is",
}
# Types that only these operations return.
ONLY_OF = {
    "incomplete_group": (),  # of dialects, whose samples arrive one by one
    "invalid_input": ("compareBatch", "rank", "rewards"),
    "no_cascade": ("rank", "rewards"),
    "not_pointwise": ("score",),
    "not_ready": ("health", "readyz"),
}
HEADERS = {
    "X-Request-Id": {
        "description": "The id of the request in the service's log: that of the request's own header, or a new one.",
        "schema": {"type": "string"},
    },
    "Server-Timing": {
        "description": "Milliseconds of each stage (W3C): encode, queue, run, total.",
        "schema": {"type": "string"},
        "example": "encode;dur=0.412, queue;dur=0.030, run;dur=3.804, total;dur=4.391",
    },
    "Retry-After": {
        "description": "Seconds until the same request may succeed.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {"description": "The scheme of the key.", "schema": {"type": "string"}, "example": "Bearer"},
}
TIMED = ("compare",)


def operation_id(route: APIRoute) -> str:
    """Return the name of an operation, after which generated clients name a function: countTokens of count_tokens."""
    first, *others = route.name.split("_")
    return first + "".join(word.capitalize() for word in others)


def complete(api: dict[str, Any]) -> None:
    """Add headers, examples, error types and the descriptions of the used tags to a document."""
    operations = list(operations_of(api))
    replace_validation_errors(api, operations)
    used = dict.fromkeys(tag for operation in operations for tag in operation["tags"])
    api["tags"] = [{"name": tag, "description": TAGS[tag][1], "x-displayName": TAGS[tag][0]} for tag in used]
    components, statuses = api["components"], status_by_type()
    components["headers"] = HEADERS
    components["examples"] = {
        kind: {"summary": f"{statuses[kind]} {kind}", "value": {"error": {"type": kind, "message": message}}}
        for kind, message in MESSAGES.items()
    }
    components["schemas"]["ErrorBody"]["properties"]["type"]["enum"] = sorted(statuses)
    examples = recorded()
    for operation in operations:
        name = operation["operationId"]
        for parameter in operation.get("parameters", ()):
            drop_null(parameter["schema"])
        for status, reply in operation["responses"].items():
            headers = headers_of(name, status)
            reply["headers"] = {header: {"$ref": f"#/components/headers/{header}"} for header in headers}
            if content := reply.get("content", {}).get("application/json"):
                if is_error(content):
                    content["examples"] = error_examples(name, status)
                elif name in examples:
                    content["examples"] = {at: {"value": one.get("reply")} for at, one in examples[name].items()}
        if "requestBody" in operation and name in examples:
            operation["requestBody"]["content"]["application/json"]["examples"] = {
                at: {"summary": one["summary"], "value": one["request"]} for at, one in examples[name].items()
            }


def replace_validation_errors(api: dict[str, Any], operations: Iterable[dict[str, Any]]) -> None:
    """Describe refused parameters as the service refuses them, not as the framework would."""
    for operation in operations:
        content = operation["responses"].get("422", {}).get("content", {}).get("application/json", {})
        if content.get("schema", {}).get("$ref", "").endswith("/HTTPValidationError"):
            operation["responses"]["422"]["description"] = "A parameter is not valid."
            content["schema"]["$ref"] = "#/components/schemas/ErrorReply"
    for name in ("HTTPValidationError", "ValidationError"):
        api["components"]["schemas"].pop(name, None)


def drop_null(schema: dict[str, Any]) -> None:
    """Leave null out of the types of a parameter: a header or a part of a URL is there, or is not."""
    types = [one for one in schema.pop("anyOf", ()) if one != {"type": "null"}]
    if len(types) == 1:
        schema |= types[0]
    elif types:
        schema["anyOf"] = types


def operations_of(api: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for operations in api["paths"].values():
        yield from operations.values()


def is_error(content: Mapping[str, Any]) -> bool:
    reference: str = content.get("schema", {}).get("$ref", "")
    return reference.endswith("/ErrorReply")


def headers_of(operation: str, status: str) -> list[str]:
    """Return the headers of a reply that a client may read."""
    of_status = {"401": ["WWW-Authenticate"], "429": ["Retry-After"], "503": ["Retry-After"]}
    timed = ["Server-Timing"] if status == "200" and operation in TIMED else []
    return ["X-Request-Id", *timed, *of_status.get(status, [])]


def error_examples(operation: str, status: str) -> dict[str, Any]:
    statuses = status_by_type()
    return {
        kind: {"$ref": f"#/components/examples/{kind}"}
        for kind in MESSAGES
        if statuses[kind] == int(status) and operation in ONLY_OF.get(kind, (operation,))
    }


@cache
def recorded() -> dict[str, dict[str, Any]]:
    """Return the examples of each operation: name -> summary, request, and the starter model's reply to it.

    `python -m tools.api_reference --record` writes the replies.
    """
    examples: dict[str, dict[str, Any]] = json.loads(EXAMPLES_FILE.read_text("utf-8"))
    return examples


def of_service(api: dict[str, Any], registry: ModelRegistry, max_batch_items: int) -> dict[str, Any]:
    """Return the document with the limit of a running service, and with its domains and models as examples.

    They are no closed list: a client that is generated from this document must accept the next model, too.
    """
    described = deepcopy(api)
    schemas = described["components"]["schemas"]
    manifests = [pipeline.manifest for pipeline in registry.pipelines.values()]
    domains = {domain for manifest in manifests for domain in manifest.spec.domains}
    models = {name for manifest in manifests for name in (manifest.name, manifest.identity)}
    for schema in schemas.values():
        properties = schema.get("properties", {})
        if {"domain", "model", "prompt"} <= properties.keys():
            properties["domain"]["examples"], properties["model"]["examples"] = sorted(domains), sorted(models)
    schemas["BatchRequest"]["properties"]["items"]["maxItems"] = max_batch_items
    return described
