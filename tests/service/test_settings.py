"""Test that the environment is read once and strictly, and that every setting is documented."""

import asyncio
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.__main__ import settings_table
from service.app import create_registry
from service.settings import PREFIX, Settings, read_settings, refuse_unknown
from tinyrm.errors import EngineUnavailable, InvalidSettings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYRM_MODEL", "models/other")
    monkeypatch.setenv("tinyrm_max_batch_tokens", "4096")
    settings = Settings()
    assert (settings.model, settings.max_batch_tokens) == ("models/other", 4096)


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
        ("GROUP_SIZE", "0"),
        ("GROUP_SIZE", "1001"),
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


def variables_of(*types: type) -> list[str]:
    return [PREFIX + name.upper() for name, field in Settings.model_fields.items() if field.annotation in types]


@pytest.mark.parametrize("value", ["", " ", "\n"])
@pytest.mark.parametrize("name", sorted(set(Settings.model_fields) - {"api_keys_file"}))
def test_an_empty_variable_is_the_default(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(PREFIX + name.upper(), value)
    assert getattr(Settings(), name) == Settings.model_fields[name].default


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_name_of_the_key_file_does_not_open_the_service(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TINYRM_API_KEYS_FILE", value)
    with pytest.raises(InvalidSettings, match="TINYRM_API_KEYS_FILE is empty; unset it to serve without keys"):
        read_settings(os.environ)


@pytest.mark.parametrize(
    ("variable", "value", "rule"),
    [
        ("TINYRM_THREADS", "x", "it must be a whole number"),
        ("TINYRM_WORKERS", "0", "it must be at least 1"),
        ("TINYRM_MAX_WAIT_S", "soon", "it must be a number (seconds)"),
        ("TINYRM_LOG_LEVEL", "loud", "it must be 'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_a_refusal_states_what_the_value_must_be(
    variable: str, value: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert assert_refused_in_one_line(variable, value) == f"{variable}={value!r} is not supported: {rule}"


def assert_refused_in_one_line(variable: str, value: str) -> str:
    with pytest.raises(InvalidSettings) as refusal:
        read_settings(os.environ)
    message = str(refusal.value)
    assert message.startswith(f"{variable}={value!r} is not supported: "), message
    assert "\n" not in message
    assert "pydantic" not in message
    return message


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e400", "x", "-1", "1e300", "1,5"])
@pytest.mark.parametrize("variable", variables_of(float))
def test_a_number_that_no_clock_takes_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    if (variable, value) == ("TINYRM_PEAK_GFLOPS_PER_S", "1e300"):
        pytest.skip("it is only divided by")
    monkeypatch.setenv(variable, value)
    message = assert_refused_in_one_line(variable, value)
    if variable.endswith("_S") and value in ("inf", "-1"):
        assert message.endswith("(seconds)" if "GFLOPS" not in variable else ""), "the limit has a unit"


@pytest.mark.parametrize("value", ["inf", "nan", "1.5", "x", "-1", "0x10"])
@pytest.mark.parametrize("variable", variables_of(int))
def test_a_count_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    assert_refused_in_one_line(variable, value)


# A service with these would answer nothing, or would not start.
USELESS = {
    "ENGINE_TIMEOUT_S": "1e-9",
    "MAX_WAIT_S": "1e-9",
    "HEADER_TIMEOUT_S": "1e-9",
    "BODY_TIMEOUT_S": "1e-9",
    "KEEP_ALIVE_S": "1e-9",
    "COHORT_TIMEOUT_S": "1e-9",
    "MAX_COHORT_WAIT_S": "1e-9",
    "MAX_HEADER_BYTES": "1",
    "MAX_BODY_BYTES": "1",
    "MAX_BUFFERED_BYTES": "1",
    "MAX_CONNECTIONS": "1000000000000",
    "WORKERS": "100000",
    "THREADS": "100000",
    "STREAMS": "100000",
    "HOST": "a b",
    "LOG_LEVEL": "loud",
}


@pytest.mark.parametrize(("name", "value"), USELESS.items())
def test_a_setting_that_leaves_a_useless_service_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(PREFIX + name, value)
    assert_refused_in_one_line(PREFIX + name, value)


def test_every_time_has_a_minimum_and_a_maximum() -> None:
    seconds = {variable for variable in variables_of(float) if variable.endswith("_S") and "GFLOPS" not in variable}
    assert seconds - {PREFIX + name for name in USELESS} == {"TINYRM_DRAIN_TIMEOUT_S", "TINYRM_REUSE_S"}, "may be 0"


def test_every_wrong_setting_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TINYRM_THREADS", "TINYRM_PORT"):
        monkeypatch.setenv(variable, "x")
    with pytest.raises(InvalidSettings, match=r"TINYRM_THREADS='x' is .*; TINYRM_PORT='x' is "):
        read_settings(os.environ)


def test_settings_that_contradict_each_other_are_named_as_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYRM_MAX_BATCH_TOKENS", "9000000")
    with pytest.raises(InvalidSettings, match=r"^TINYRM_MAX_QUEUE_TOKENS must be at least TINYRM_MAX_BATCH_TOKENS, "):
        read_settings(os.environ)


def test_a_password_in_an_address_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYRM_OTLP_ENDPOINT", "ftp://me:secret@collector")
    with pytest.raises(InvalidSettings, match="TINYRM_OTLP_ENDPOINT is not supported: the address") as refusal:
        read_settings(os.environ)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "host"), [("[::1]", "::1"), ("::1", "::1"), ("[::]", "::"), (" localhost ", "localhost")]
)
def test_an_address_may_be_written_as_in_a_url(monkeypatch: pytest.MonkeyPatch, given: str, host: str) -> None:
    monkeypatch.setenv("TINYRM_HOST", given)
    assert Settings().host == host


# What Kubernetes adds for the Services `tinyrm` and `tinyrm-gpu`.
LINKS = {
    "TINYRM_SERVICE_HOST": "10.0.0.1",
    "TINYRM_SERVICE_PORT": "8000",
    "TINYRM_SERVICE_PORT_HTTP": "8000",
    "TINYRM_PORT": "tcp://10.0.0.1:8000",
    "TINYRM_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "TINYRM_PORT_8000_TCP_PROTO": "tcp",
    "TINYRM_PORT_8000_TCP_PORT": "8000",
    "TINYRM_PORT_8000_TCP_ADDR": "10.0.0.1",
    "TINYRM_GPU_SERVICE_HOST": "10.0.0.2",
    "TINYRM_GPU_PORT": "tcp://10.0.0.2:8001",
    "TINYRM_GPU_PORT_8001_TCP_ADDR": "10.0.0.2",
}


def test_variables_of_kubernetes_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LINKS.items():
        monkeypatch.setenv(name, value)
    settings = read_settings(os.environ)
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)


@pytest.mark.parametrize("name", ["TINYRM_HTTP_PORT", "TINYRM_SERVICE", "TINYRM_SERVICE_NAME", "TINYRM_PORTS"])
def test_a_misspelled_setting_is_not_taken_for_one_of_kubernetes(name: str) -> None:
    with pytest.raises(InvalidSettings, match=name):
        refuse_unknown(LINKS | {name: "8000"})


def test_the_queue_must_hold_a_batch() -> None:
    Settings(max_batch_tokens=1000, max_queue_tokens=1000)
    with pytest.raises(ValidationError, match="max_queue_tokens must be at least max_batch_tokens"):
        Settings(max_batch_tokens=1000, max_queue_tokens=999)


def test_a_batch_must_hold_both_orders_of_the_longest_comparison() -> None:
    Settings(max_batch_tokens=512).check_against(256)
    with pytest.raises(InvalidSettings, match=r"TINYRM_MAX_BATCH_TOKENS=511 .* 512 tokens"):
        Settings(max_batch_tokens=511).check_against(256)


def test_the_queue_must_hold_both_orders_of_the_longest_comparison() -> None:
    Settings(max_queue_tokens=512).check_against(256)
    with pytest.raises(InvalidSettings, match=r"TINYRM_MAX_QUEUE_TOKENS=511 .* 512 tokens"):
        Settings(max_queue_tokens=511).check_against(256)


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
