"""Test that the environment is read once and strictly, and that every setting is documented."""

import asyncio
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.__main__ import settings_table
from service.app import create_registry
from service.settings import PREFIX, Settings, refuse_unknown
from tinyrm.errors import EngineUnavailable, InvalidSettings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYRM_MODEL", "models/other")
    monkeypatch.setenv("tinyrm_max_batch_tokens", "4096")
    settings = Settings()
    assert (settings.model, settings.max_batch_tokens) == (Path("models/other"), 4096)


def test_an_unknown_variable_is_refused_with_the_known_names() -> None:
    with pytest.raises(InvalidSettings, match=r"TINYRM_MODLE; known: .*TINYRM_ENGINE, .*TINYRM_MODEL, ") as refusal:
        refuse_unknown({"TINYRM_MODLE": "x", "TINYRM_PORT": "1", "PATH": "/bin"})
    known = str(refusal.value).split("known: ")[1].split(", ")
    assert known == sorted(PREFIX + name.upper() for name in Settings.model_fields)


def test_known_variables_and_those_of_other_programs_are_accepted() -> None:
    refuse_unknown({"TINYRM_PORT": "1", "tinyrm_host": "::1", "TINY": "x", "HOME": "/"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "eighty"),
        ("PORT", "-1"),
        ("PORT", "65536"),
        ("THREADS", "-1"),
        ("DEFAULT_SWAP", "yes"),
        ("MAX_BATCH_TOKENS", "-1"),
        ("MAX_QUEUE_TOKENS", "0"),
        ("MAX_BATCH_ITEMS", "0"),
        ("MAX_BATCH_ITEMS", "1000000"),
        ("MAX_WAIT_S", "0"),
        ("OVERLOAD_STATUS", "500"),
        ("ENGINE_TIMEOUT_S", "0"),
        ("MAX_BODY_BYTES", "0"),
        ("DRAIN_TIMEOUT_S", "-1"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("MAX_HEADER_BYTES", "0"),
        ("HEADER_TIMEOUT_S", "0"),
        ("BODY_TIMEOUT_S", "0"),
        ("MAX_CONNECTIONS", "0"),
        ("ACCESS_LOG", "maybe"),
        ("OTLP_ENDPOINT", "collector:4318"),
        ("CORS_ORIGINS", "example.com"),
        ("CORS_ORIGINS", "https://a.example/path"),
        ("GROUP_SIZE", "1"),
        ("GROUP_SIZE", "129"),
        ("COHORT_TIMEOUT_S", "0"),
        ("MAX_OPEN_COHORTS", "0"),
        ("MAX_COHORT_BYTES", "0"),
        ("CORS_ORIGINS", "https://a.example, https://b.example/"),
    ],
)
def test_wrong_value_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(ValidationError, match=f"(?i){name}"):
        Settings()


def test_the_queue_must_hold_a_batch() -> None:
    Settings(max_batch_tokens=1000, max_queue_tokens=1000)
    with pytest.raises(ValidationError, match="max_queue_tokens must be at least max_batch_tokens"):
        Settings(max_batch_tokens=1000, max_queue_tokens=999)


def test_a_batch_must_hold_both_orders_of_the_longest_comparison() -> None:
    Settings(max_batch_tokens=512).check_against(256)
    with pytest.raises(InvalidSettings, match=r"TINYRM_MAX_BATCH_TOKENS=511 .* 512 tokens"):
        Settings(max_batch_tokens=511).check_against(256)


def test_service_does_not_start_with_a_batch_too_small_for_its_model(bundle_folder: Path) -> None:
    with pytest.raises(InvalidSettings, match="TINYRM_MAX_BATCH_TOKENS"):
        asyncio.run(create_registry(Settings(model=bundle_folder, max_batch_tokens=511)).start())


def test_the_service_does_not_start_with_another_engine_or_precision(bundle_folder: Path) -> None:
    with pytest.raises(EngineUnavailable, match="unknown engine 'abacus'"):
        asyncio.run(create_registry(Settings(model=bundle_folder, engine="abacus")).start())
    with pytest.raises(EngineUnavailable, match=r"no precision 'int3' .* it has: fp32"):
        asyncio.run(create_registry(Settings(model=bundle_folder, precision="int3")).start())


def test_settings_cannot_change_after_the_start() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Settings(), "port", 1)  # noqa: B010  # a type checker refuses the plain form


def test_every_setting_has_a_default_and_is_documented() -> None:
    table = settings_table()
    for name, field in Settings.model_fields.items():
        assert not field.is_required(), name
        assert f"| `{PREFIX}{name.upper()}` | `{field.default}` | {field.description} |" in table
        assert str(field.description).endswith("."), name


def test_limits_carry_their_unit() -> None:
    limits = [name for name in Settings.model_fields if name.startswith("max_") or "timeout" in name]
    assert limits
    assert all(name.endswith(("_tokens", "_items", "_bytes", "_connections", "_cohorts", "_s")) for name in limits)
