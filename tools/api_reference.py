"""python -m tools.api_reference FOLDER: write the API as openapi.json and api.md. A test compares the stored files.

With --record the replies of the examples are written first, as the starter model gives them.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from starlette.testclient import TestClient

from service.api.document import EXAMPLES_FILE, recorded
from service.app import create_api, create_app, create_state
from service.settings import Settings
from tinyrm.command_line import parse

# Of an example on one line.
MAX_LINE = 100
STARTER = Path(__file__).parents[1] / "models" / "starter"
HEAD = """# API

This page lists every endpoint and every field. `python -m tools.api_reference docs` writes it from the OpenAPI document
beside it ([openapi.json](openapi.json)). A running service serves the same document, with its own domains, models and
limits, at `/openapi.json` and as a page at `/docs`.

`/v1/rank` orders responses by Bradley-Terry strengths, fitted to the probabilities of their comparisons. `/v1/rewards`
returns the same strengths or, with scale `unit`, mean probabilities. `tinyrm evaluate` computes the RewardBench 2 score
with the same function, so the benchmark measures what is served. [results/ranking.md](results/ranking.md) gives the
reasons for this formula.

A model that reads one response (`reads` in `/v1/models`) gives each response of a group one score, and the same routes
return margins, strengths and rewards from their differences: n responses cost n sequences, and no pair is compared.
Only such a model answers `/v1/score`.

An empty response, of nothing but white space and special tokens, may be in a group, and is last: 3 log-odds below the
worst of the others (`place_last` in `tinyrm/ranking.py`), unless `empty` is `judge`.

With strategy `cascade` a model of each kind ranks: the one that reads responses scores all n, and the one that reads
pairs compares the best `top` (4) in both orders: 16 + 12 sequences for 16 responses instead of 240. The best `top` are
in the order of the pairs, the others follow in that of the scores (formula: `settle` in `tinyrm/ranking.py`; measured:
[results/cascade.md](results/cascade.md)). [settings.md](settings.md) states how the two models are served and found.

A prompt or a response may be a list of chat messages in the form of OpenAI's API: `role` is `system`, `developer`,
`user`, `assistant`, `tool` or `function`, and `content` is a text or a list of parts with text. The model reads a
`developer` as the system, a `tool` as the user, and `tool_calls` as text. A part without text, such as an image, is
refused. The messages of a response are the assistant's and those of its tools.

Every error has one shape: `{"error": {"type": "...", "message": "..."}}`. `type` is stable, so programs may
rely on it; [errors.md](errors.md) explains all.

A client can be generated from the document: operation ids (`compare`, `compareBatch`, `rank`, `countTokens`, ...) are
its names of functions, and `model` and `domain` are free texts, so that it works with the next model, too.
"""


@dataclass(frozen=True)
class Options:
    """Write the API as openapi.json and api.md."""

    folder: tyro.conf.Positional[Path]
    """Folder for both files, which must exist."""
    record: bool = False
    """Write the starter's replies into service/api/examples.json."""


def main(arguments: list[str] | None = None) -> int:
    options = parse(Options, arguments, prog="python -m tools.api_reference")
    folder = options.folder
    if not folder.is_dir():
        print(f"{folder} is not a folder", file=sys.stderr)
        return 2
    if options.record:
        with TestClient(create_app(create_state(Settings(model=str(STARTER))))) as client:
            EXAMPLES_FILE.write_text(json.dumps(replies_of(client), indent=1) + "\n", encoding="utf-8")
        recorded.cache_clear()
    for name, text in documents().items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


def replies_of(client: TestClient) -> dict[str, dict[str, Any]]:
    """Return the examples with the replies of a service."""
    examples = deepcopy(recorded())
    for path, operations in create_api(Settings.model_construct()).openapi()["paths"].items():
        for method, operation in operations.items():
            for example in examples.get(operation["operationId"], {}).values():
                where = path.format(**example.get("parameters", {}))
                example["reply"] = client.request(method, where, json=example.get("request")).raise_for_status().json()
    return examples


def documents() -> dict[str, str]:
    """Return file name -> content, for a service with default settings."""
    api = create_api(Settings.model_construct()).openapi()
    api["info"]["version"] = "as installed"  # the rest changes when the API does
    return {"openapi.json": json.dumps(api, indent=1) + "\n", "api.md": "\n".join([HEAD, *pages(api)])}


def pages(api: Mapping[str, Any]) -> Iterator[str]:
    for path, operations in api["paths"].items():
        for method, operation in operations.items():
            yield f"## {method.upper()} {path}\n"
            yield f"{operation['description']}\n"
            yield from parameters(operation)
            yield from request(api, operation)
            yield from replies(api, operation)


def parameters(operation: Mapping[str, Any]) -> Iterator[str]:
    for parameter in operation.get("parameters", ()):
        yield f"{parameter['in'].capitalize()} `{parameter['name']}`: {parameter.get('description', '')}\n"


def request(api: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[str]:
    if "requestBody" not in operation:
        return
    content = operation["requestBody"]["content"]["application/json"]
    yield "### Request\n"
    yield fields(api, resolved(api, content["schema"]))
    for example in content.get("examples", {}).values():
        yield f"{example['summary']}:\n\n```json\n{written(example['value'])}\n```\n"


def replies(api: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[str]:
    yield "### Reply\n"
    for content in operation["responses"]["200"].get("content", {}).values():
        schema = resolved(api, content.get("schema", {}))
        if "properties" in schema:
            yield f"{schema.get('description', '')}\n"
            yield fields(api, schema)
        for example in list(content.get("examples", {}).values())[:1]:
            yield f"```json\n{written(example['value'])}\n```\n"
    rows = [
        (status, reply["description"], ", ".join(f"`{kind}`" for kind in types_of(reply)))
        for status, reply in operation["responses"].items()
        if status != "200"
    ]
    if rows:
        yield table(("status", "when", "types"), rows)


def types_of(reply: Mapping[str, Any]) -> list[str]:
    return [kind for content in reply.get("content", {}).values() for kind in content.get("examples", {})]


def written(value: Any) -> str:
    """Return an example as JSON: on one line if it fits."""
    line = json.dumps(value)
    return line if len(line) <= MAX_LINE else json.dumps(value, indent=2)


def fields(api: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        (f"`{name}`", f"{kind(api, field)}{'' if name in required else ', optional'}", about(field))
        for name, field in schema["properties"].items()
    ]
    return table(("field", "type", "meaning"), rows)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose cells are not padded: descriptions are long."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(heads)}", *lines[1:], ""])


def about(field: Mapping[str, Any]) -> str:
    default = field.get("default")
    text: str = field.get("description", "")
    return text if default in (None, "") else f"{text} Default: `{json.dumps(default)}`.".strip()


def kind(api: Mapping[str, Any], field: Mapping[str, Any]) -> str:
    """Return a type in words."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        inner = api["components"]["schemas"][name].get("properties", {})
        if name == "ChatMessage":
            return "chat message"  # the head of the page describes it
        return f"object ({', '.join(inner)})" if inner else name
    if choices := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(kind(api, choice) for choice in choices)
    if "enum" in field:
        return " or ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {kind(api, field['items'])}"
    return str(field.get("const") or field.get("type", "any"))


def resolved(api: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = schema
    if "$ref" in schema:
        found = api["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    return found


if __name__ == "__main__":
    sys.exit(main())
