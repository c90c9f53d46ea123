"""Test what each key allows, and that a change of the keys takes effect."""

import base64
import hmac
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.http.auth import required_scope
from service.keys import ApiKey, ApiKeys, KeyRing, KeyScope, hash_token
from service.settings import Settings
from tests.service.conftest import PAIR, Served, serve
from tinyrm.errors import InvalidKeys

TOKENS: dict[str, frozenset[KeyScope]] = {
    "scorer": frozenset(("score",)),
    "prometheus": frozenset(("metrics",)),
    "operator": frozenset(("score", "metrics", "admin")),
}
OPEN = (
    "/health",
    "/healthz",
    "/readyz",
    "/docs",
    "/openapi.json",
    "/",
    "/page/app.js",
    "/page/style.css",
    "/page/logo.svg",
    "/page/inter.woff2",
    "/page/service.json",
)
BODIES: dict[str, dict[str, Any]] = {
    "/v1/compare": PAIR,
    "/v1/compare/batch": {"items": [PAIR]},
    "/v1/rank": {"prompt": "p", "responses": ["x", "y"]},
    "/v1/rewards": {"prompt": "p", "responses": ["x", "y"]},
    "/v1/score": {"prompt": "p", "response": "x"},
    "/v1/tokens": {"prompt": "p", "responses": ["x"]},
}
# What a request gets that is allowed: the model of these tests reads pairs.
ALLOWED = {"/v1/score": 422, "/admin/reload": 202}
NEEDS = dict.fromkeys([*BODIES, "/v1/models", "/v1/models/toy"], "score") | {
    "/metrics": "metrics",
    "/admin/reload": "admin",
}


def basic(name_and_password: str) -> str:
    return base64.b64encode(name_and_password.encode()).decode()


def entry(name: str, token: str | None = None, scopes: frozenset[KeyScope] = frozenset(("score",))) -> ApiKey:
    digest = hash_token((token or name).encode())
    return ApiKey(name=name, sha256=digest, scopes=scopes, created=datetime(2026, 1, 1, tzinfo=UTC))


def write(path: Path, *keys: ApiKey) -> Path:
    """Replace the file, as `python -m service.keys` does."""
    staged = path.with_suffix(".new")
    staged.write_text(ApiKeys(keys=keys).model_dump_json())
    staged.chmod(0o600)
    return staged.replace(path)


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    return write(path, *(entry(name, name, scopes) for name, scopes in TOKENS.items()))


@pytest.fixture(scope="module")
def guarded(bundle_folder: Path, keys_file: Path) -> Iterator[Served]:
    with serve(Settings(model=bundle_folder, api_keys_file=keys_file)) as one:
        yield one


def ask(served: Served, path: str, authorization: str | None) -> Any:
    headers = {} if authorization is None else {"Authorization": authorization}
    if path in BODIES or path.startswith("/admin/"):
        return served.client.post(path, headers=headers, json=BODIES.get(path))
    return served.client.get(path, headers=headers)


def refused(reply: Any) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["type"]


@pytest.mark.parametrize("path", OPEN)
@pytest.mark.parametrize("authorization", [None, "Bearer wrong"])
def test_open_paths_need_no_key(guarded: Served, path: str, authorization: str | None) -> None:
    assert ask(guarded, path, authorization).status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [
        *(None, "", "Bearer", "Bearer ", "Bearer wrong", "scorer", "Bearer \u00e9", f"Bearer {basic('x:scorer')}"),
        *("Basic", "Basic scorer", "Basic \u00e9"),
        *(f"Basic {basic(pair)}" for pair in ("x:wrong", "scorer:", "scorer", "scorer:x", "x:y:scorer", ":")),
    ],
)
def test_every_other_path_needs_a_key(guarded: Served, authorization: str | None) -> None:
    others = (
        "/admin/anything",
        "/nowhere",
        "/healthz/",
        "http://testserver//healthz",
        "/page/",
        "/page/x.js/y",
        "/healthz%2f",
    )
    for path in (*NEEDS, *others):
        sent = {} if authorization is None else {b"Authorization": authorization.encode("latin-1")}
        reply = guarded.client.get(path, headers=sent)
        assert refused(reply) == (401, "unauthorized"), path
        assert reply.headers["WWW-Authenticate"] == "Bearer", path
        assert "wrong" not in reply.text, path


@pytest.mark.parametrize("path", NEEDS)
@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("scheme", ["bearer", "basic"])
def test_a_key_is_limited_to_its_scopes(guarded: Served, path: str, token: str, scheme: str) -> None:
    reply = ask(guarded, path, f"bearer {token}" if scheme == "bearer" else f"basic {basic(f'any name:{token}')}")
    if NEEDS[path] in TOKENS[token]:
        assert reply.status_code == ALLOWED.get(path, 200)
    else:
        assert refused(reply) == (403, "forbidden")
        assert NEEDS[path] in reply.json()["error"]["message"]


def test_every_operation_is_in_the_tables_above(guarded: Served) -> None:
    paths = guarded.client.get("/openapi.json").json()["paths"]
    assert {path.replace("{name}", "toy") for path in paths} - set(OPEN) == set(NEEDS)
    assert {path: required_scope(path) for path in NEEDS} == NEEDS
    assert required_scope("/admin/anything") == "admin"


def test_the_key_is_checked_before_the_body_is_read(guarded: Served) -> None:
    reply = guarded.client.post("/v1/compare", content=b"[" * 100)
    assert refused(reply) == (401, "unauthorized")


def test_openapi_declares_the_scheme_and_the_operations_that_need_it(guarded: Served, served: Served) -> None:
    for one, without_key in ((guarded, []), (served, [{}])):
        api = one.client.get("/openapi.json").json()
        schemes = ("bearer", "basic")
        assert api["components"]["securitySchemes"] == {one: {"type": "http", "scheme": one} for one in schemes}
        for operation, scope in (
            (api["paths"]["/v1/compare"]["post"], "score"),
            (api["paths"]["/metrics"]["get"], "metrics"),
        ):
            assert operation["security"] == [*without_key, *({one: [scope]} for one in schemes)]
        assert api["paths"]["/healthz"]["get"]["security"] == []


def test_without_the_setting_everything_is_open_except_admin_paths(served: Served) -> None:
    paths = [path for path in (*NEEDS, *OPEN) if path != "/admin/reload"]
    assert [ask(served, path, None).status_code for path in paths] == [ALLOWED.get(path, 200) for path in paths]
    assert refused(ask(served, "/admin/reload", None)) == (404, "not_found")


def test_new_and_revoked_keys_take_effect_with_the_next_request(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.json", entry("old"))
    ring = KeyRing(path)
    assert ring.find(b"old") == entry("old")
    assert ring.find(b"new") is None
    write(path, entry("new"))
    assert ring.find(b"old") is None
    assert ring.find(b"new") == entry("new")


@pytest.mark.parametrize("broken", ["[]", "{", '{"keys": [{"name": "x"}]}', '{"kyes": []}', None])
def test_a_broken_file_keeps_the_keys_and_logs_an_error(tmp_path: Path, broken: str | None) -> None:
    path = write(tmp_path / "keys.json", entry("one"))
    ring = KeyRing(path)
    if broken is None:
        path.unlink()
    else:
        path.write_text(broken)
    with capture_logs() as lines:
        assert ring.find(b"one") == entry("one")
        assert ring.find(b"one") == entry("one")
    assert [line["log_level"] for line in lines] == ["error"], "logged once, not at every request"
    assert "keys.json" in lines[0]["reason"]
    write(path, entry("two"))
    assert ring.find(b"two") == entry("two")


def test_the_error_does_not_contain_the_content_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"keys": [{"name": "x", "sha256": "the-key-itself", "scopes": ["score"]}]}')
    with pytest.raises(InvalidKeys) as refusal:
        KeyRing(path)
    assert "keys.0.sha256" in str(refusal.value)
    assert "the-key-itself" not in str(refusal.value)


@pytest.mark.parametrize(
    ("mode", "warned"), [(0o600, 0), (0o400, 0), (0o440, 0), (0o640, 0), (0o660, 1), (0o604, 1), (0o602, 1)]
)
def test_a_file_that_others_can_access_causes_a_warning(tmp_path: Path, mode: int, warned: int) -> None:
    path = write(tmp_path / "keys.json", entry("one"))
    path.chmod(mode)
    with capture_logs() as lines:
        KeyRing(path)
    assert [line["log_level"] for line in lines] == ["warning"] * warned


def test_every_key_is_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = KeyRing(write(tmp_path / "keys.json", entry("a"), entry("b"), entry("c")))
    compared: list[tuple[str, str]] = []
    equal = hmac.compare_digest

    def counted(a: str, b: str) -> bool:
        compared.append((a, b))
        return equal(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    assert ring.find(b"a") == entry("a")
    assert ring.find(b"z") is None
    assert len(compared) == 6


def test_two_keys_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    one = entry("one").model_dump_json()
    path.write_text(f'{{"keys": [{one}, {one}]}}')
    with pytest.raises(InvalidKeys, match="two keys have the same name"):
        KeyRing(path)


def test_service_without_its_file_of_keys_does_not_start(bundle_folder: Path, tmp_path: Path) -> None:
    missing = Settings(model=bundle_folder, api_keys_file=tmp_path / "none.json")
    with pytest.raises(InvalidKeys, match=r"none\.json cannot be read"), serve(missing):
        pass


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = KeyRing(write(tmp_path / "keys.json", entry("one")))
    monkeypatch.setattr(ApiKeys, "read", None)
    assert ring.find(b"one")
    os.utime(tmp_path / "keys.json", ns=(0, 0))
    with pytest.raises(TypeError):
        ring.find(b"one")


def test_the_engine_is_shared_among_keys(guarded: Served, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fairness key of a comparison is its client; without API keys each call has its own."""
    fairness_keys: list[Any] = []
    for service in (guarded, served):
        monkeypatch.setattr(service.pipeline.backend, "submit", noting(fairness_keys, service.pipeline.backend.submit))
    assert all(ask(guarded, path, "Bearer scorer").status_code == 200 for path in ("/v1/compare", "/v1/compare/batch"))
    assert ask(guarded, "/v1/compare", "Bearer operator").status_code == 200
    assert fairness_keys == ["scorer", "scorer", "operator"]
    fairness_keys.clear()
    assert all(ask(served, "/v1/compare", None).status_code == 200 for _ in range(2))
    assert len(set(fairness_keys)) == 2


def noting(fairness_keys: list[Any], submit: Any) -> Any:
    async def submit_noted(*args: Any, **options: Any) -> Any:
        fairness_keys.append(options["fairness_key"])
        return await submit(*args, **options)

    return submit_noted
