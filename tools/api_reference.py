"""`python -m tools.api_reference FOLDER` writes the API as openapi.json and api.md; a test compares what is stored."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from service.app import create_api
from service.settings import Settings

HEAD = """# API

Written by `python -m tools.api_reference docs` from the OpenAPI document beside it (`openapi.json`). A running service
tells the same at `/openapi.json`, with its domains, models and limits, and at `/docs`.

Every error has one shape: `{"error": {"type": "...", "message": "..."}}`. `type` is stable and meant for programs.
"""


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) == 2 else None
    if folder is None or not folder.is_dir():
        print("usage: python -m tools.api_reference FOLDER", file=sys.stderr)
        return 2
    for name, text in documents().items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


def documents() -> dict[str, str]:
    """File name -> content, for a service with default settings."""
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
        yield f"Header `{parameter['name']}`: {parameter.get('description', '')}\n"


def request(api: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[str]:
    if "requestBody" not in operation:
        return
    schema = resolved(api, operation["requestBody"]["content"]["application/json"]["schema"])
    yield "### Request\n"
    yield fields(api, schema)
    for example in schema.get("examples", ()):
        yield f"```json\n{json.dumps(example, indent=2)}\n```\n"


def replies(api: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[str]:
    yield "### Reply\n"
    for content in operation["responses"]["200"].get("content", {}).values():
        schema = resolved(api, content.get("schema", {}))
        if "properties" in schema:
            yield f"{schema.get('description', '')}\n"
            yield fields(api, schema)
    errors = {status: reply for status, reply in operation["responses"].items() if status != "200"}
    if errors:
        rows = [f"| {status} | {reply['description']} |" for status, reply in errors.items()]
        yield "\n".join(["| status | when |", "|---|---|", *rows, ""])


def fields(api: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        f"| `{name}` | {kind(api, field)}{'' if name in required else ', optional'} | {about(field)} |"
        for name, field in schema["properties"].items()
    ]
    return "\n".join(["| field | type | meaning |", "|---|---|---|", *rows, ""])


def about(field: Mapping[str, Any]) -> str:
    default = field.get("default")
    text: str = field.get("description", "")
    return text if default in (None, "") else f"{text} Default: `{json.dumps(default)}`.".strip()


def kind(api: Mapping[str, Any], field: Mapping[str, Any]) -> str:
    """A type in words."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        inner = api["components"]["schemas"][name].get("properties", {})
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
