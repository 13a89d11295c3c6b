"""What can be configured: every error names its variable, all at once, and no secret shows anywhere."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from sidecar.commands.admin_settings import complaints
from sidecar.embedded.certificates import Certificates, ensure_certificates
from sidecar.listening import ON_UNIX_SOCKETS, Transport
from sidecar.settings import WELL_KNOWN_SECRETS, Settings, StoreSettings, UpSettings

PEPPER = "0123456789abcdef0123456789abcdef"
PASSWORD = "hunter2secret"
WHOLE = {
    "DATABASE_URL": f"postgresql://user:{PASSWORD}@host/gateway",
    "REDIS_URL": f"redis://:{PASSWORD}@host:6379/0",
    "GATEWAY_KEY_PEPPER": PEPPER,
    "GATEWAY_SOCKET_DIR": "/run/gw",
}


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Only what every setting needs is set."""
    for prefix in ("GATEWAY_", "DATABASE_", "REDIS_", "ROUTER_"):
        for name in _named(prefix):
            monkeypatch.delenv(name)
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A server's, and the CA of its clients."""
    return ensure_certificates(tmp_path_factory.mktemp("certificates") / "tls")


def _named(prefix: str) -> list[str]:
    import os  # noqa: PLC0415 - only this asks the environment

    return [name for name in os.environ if name.startswith(prefix)]


def _error(settings: type[BaseSettings]) -> ValidationError:
    with pytest.raises(ValidationError) as found:
        settings()
    return found.value


def test_with_what_is_needed_the_rest_has_defaults(env: pytest.MonkeyPatch) -> None:
    del env
    settings = Settings()
    assert settings.database_url.get_secret_value() == WHOLE["DATABASE_URL"]
    assert settings.redis_url.get_secret_value() == WHOLE["REDIS_URL"]
    assert settings.key_pepper.get_secret_value() == PEPPER
    assert settings.socket_dir == Path("/run/gw")
    assert (settings.workers, settings.ops_port, settings.max_body_bytes) == (2, 8444, 4 * 1024 * 1024)
    assert settings.quota_deadline_seconds == 0.05


@pytest.mark.parametrize("variable", list(WHOLE))
def test_a_variable_that_is_not_set_is_named(env: pytest.MonkeyPatch, variable: str) -> None:
    env.delenv(variable)
    [line] = complaints(_error(Settings))
    assert line.startswith(f"{variable}: not set")


def test_all_errors_are_told_together(env: pytest.MonkeyPatch) -> None:
    for variable in WHOLE:
        env.delenv(variable)
    env.setenv("GATEWAY_WORKERS", "many")
    assert {line.partition(":")[0] for line in complaints(_error(Settings))} == {*WHOLE, "GATEWAY_WORKERS"}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GATEWAY_WORKERS", "0"),
        ("GATEWAY_WORKERS", "65"),
        ("GATEWAY_WORKERS", "two"),
        ("GATEWAY_OPS_PORT", "0"),
        ("GATEWAY_OPS_PORT", "65536"),
        ("GATEWAY_MAX_BODY_BYTES", "1023"),
        ("GATEWAY_MAX_BODY_BYTES", "4MiB"),
        ("GATEWAY_QUOTA_DEADLINE_SECONDS", "0"),
        ("GATEWAY_QUOTA_DEADLINE_SECONDS", "11"),
        ("GATEWAY_QUOTA_DEADLINE_SECONDS", "nan"),
        ("GATEWAY_DRAIN_SECONDS", "-1"),
        ("GATEWAY_LOG_FORMAT", "xml"),
        ("GATEWAY_KEY_PEPPER", ""),
        ("GATEWAY_KEY_PEPPER", "x" * 31),
        ("GATEWAY_SOCKET_DIR", "/" + "x" * 90),
        ("GATEWAY_TRANSPORT", "fast"),
        ("GATEWAY_LISTEN", "localhost:9000"),
        ("GATEWAY_LISTEN", "127.0.0.1"),
        ("GATEWAY_LISTEN", "127.0.0.1:0"),
        ("GATEWAY_LISTEN", "127.0.0.1:65536"),
        ("GATEWAY_LISTEN", "127.0.0.256:9000"),
        ("GATEWAY_LISTEN", "::1:9000"),
        ("GATEWAY_LISTEN", "[127.0.0.1]:9000"),
        ("GATEWAY_LISTEN", "[fe80::1%eth0]:9000"),
    ],
)
def test_a_wrong_value_is_told_by_the_name_of_its_variable(env: pytest.MonkeyPatch, variable: str, value: str) -> None:
    env.setenv(variable, value)
    [line] = complaints(_error(Settings))
    assert variable in line


@pytest.mark.parametrize(
    ("variable", "value"),
    [("GATEWAY_PORT", "0"), ("GATEWAY_WORKERS", "x"), ("GATEWAY_OPS_PORT", "70000"), ("ROUTER_URL", "host:8000")],
)
def test_a_wrong_value_for_up_is_told_by_the_name_of_its_variable(
    env: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    env.setenv(variable, value)
    [line] = complaints(_error(UpSettings))
    assert line.startswith(f"{variable}: ")


@pytest.mark.parametrize("pepper", sorted(WELL_KNOWN_SECRETS))
def test_a_well_known_pepper_is_refused_however_it_is_written(env: pytest.MonkeyPatch, pepper: str) -> None:
    for written in (pepper, pepper.upper(), pepper.title()):
        env.setenv("GATEWAY_KEY_PEPPER", written)
        [line] = complaints(_error(StoreSettings))
        assert "openssl rand" in line


def test_a_pepper_of_32_characters_will_do(env: pytest.MonkeyPatch) -> None:
    env.setenv("GATEWAY_KEY_PEPPER", "y" * 32)
    assert StoreSettings().key_pepper.get_secret_value() == "y" * 32


def test_no_secret_shows_in_a_repr_or_a_dump(env: pytest.MonkeyPatch) -> None:
    del env
    settings = Settings()
    for shown in (repr(settings), str(settings), repr(settings.model_dump()), settings.model_dump_json()):
        assert PASSWORD not in shown
        assert PEPPER not in shown


@pytest.mark.parametrize(
    "change",
    [
        {"GATEWAY_KEY_PEPPER": "short-but-secret"},
        {"GATEWAY_WORKERS": "many"},
        {"GATEWAY_SOCKET_DIR": "/" + "x" * 90},
        {"REDIS_URL": None},
    ],
)
def test_no_secret_shows_in_an_error(env: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    for variable, value in change.items():
        if value is None:
            env.delenv(variable)
        else:
            env.setenv(variable, value)
    error = _error(Settings)
    # The text of the exception itself is what a traceback of a worker shows.
    for shown in (str(error), repr(error), *complaints(error)):
        for secret in (PASSWORD, PEPPER, "short-but-secret"):
            assert secret not in shown


def test_lean_on_unix_sockets_is_the_default(env: pytest.MonkeyPatch) -> None:
    for text in (None, ""):
        if text is not None:
            env.setenv("GATEWAY_LISTEN", text)
        assert (Settings().transport, Settings().listen) == (Transport.LEAN, None)


@pytest.mark.parametrize("text", ["127.0.0.1:9000", "127.8.8.8:9000", "[::1]:9000"])
@pytest.mark.parametrize("transport", [transport.value for transport in Transport])
def test_either_server_may_listen_on_loopback_without_tls(env: pytest.MonkeyPatch, transport: str, text: str) -> None:
    env.setenv("GATEWAY_TRANSPORT", transport)
    env.setenv("GATEWAY_LISTEN", text)
    settings = Settings()
    assert (settings.transport, str(settings.listen)) == (transport, text)
    assert json.loads(settings.model_dump_json())["listen"]["port"] == 9000


ELSEWHERE = ["10.0.0.1:9000", "0.0.0.0:9000", "[::]:9000", "[2001:db8::1]:9000", "[::ffff:10.0.0.1]:9000"]
OF_TLS = ("GATEWAY_LISTEN_CERTIFICATE", "GATEWAY_LISTEN_KEY", "GATEWAY_LISTEN_CLIENT_CA")


@pytest.mark.parametrize("text", ELSEWHERE)
def test_lean_listens_on_this_host_only(env: pytest.MonkeyPatch, text: str) -> None:
    env.setenv("GATEWAY_LISTEN", text)
    [line] = complaints(_error(Settings))
    assert "GATEWAY_TRANSPORT=lean" in line
    assert f"GATEWAY_LISTEN={text}" in line


@pytest.mark.parametrize("text", ELSEWHERE)
def test_beyond_this_host_clients_must_show_certificates(
    env: pytest.MonkeyPatch, certificates: Certificates, text: str
) -> None:
    env.setenv("GATEWAY_TRANSPORT", "grpcio")
    env.setenv("GATEWAY_LISTEN", text)
    [line] = complaints(_error(Settings))
    assert f"GATEWAY_LISTEN={text}" in line
    assert all(name in line for name in OF_TLS)
    _set_tls(env, certificates)
    assert str(Settings().listen) == text


@pytest.mark.parametrize("name", OF_TLS)
@pytest.mark.parametrize("address", ["127.0.0.1:9000", "10.0.0.1:9000"])
def test_tls_needs_all_of_its_parts(
    env: pytest.MonkeyPatch, certificates: Certificates, address: str, name: str
) -> None:
    env.setenv("GATEWAY_TRANSPORT", "grpcio")
    env.setenv("GATEWAY_LISTEN", address)
    _set_tls(env, certificates)
    env.delenv(name)
    [line] = complaints(_error(Settings))
    assert line.startswith(f"{name} not set")


def test_lean_has_no_tls(env: pytest.MonkeyPatch, certificates: Certificates) -> None:
    env.setenv("GATEWAY_LISTEN", "127.0.0.1:9000")
    _set_tls(env, certificates)
    [line] = complaints(_error(Settings))
    assert line.startswith("GATEWAY_TRANSPORT=lean has no TLS")
    assert all(name in line for name in OF_TLS)


def test_certificates_for_unix_sockets_are_refused(env: pytest.MonkeyPatch, certificates: Certificates) -> None:
    env.setenv("GATEWAY_TRANSPORT", "grpcio")
    _set_tls(env, certificates)
    [line] = complaints(_error(Settings))
    assert all(name in line for name in ("GATEWAY_LISTEN,", *OF_TLS))


@pytest.mark.parametrize("name", OF_TLS)
@pytest.mark.parametrize("wrong", ["missing", "empty", "another"])
def test_files_that_do_not_fit_are_told_before_anything_starts(
    env: pytest.MonkeyPatch, certificates: Certificates, tmp_path: Path, *, name: str, wrong: str
) -> None:
    env.setenv("GATEWAY_TRANSPORT", "grpcio")
    env.setenv("GATEWAY_LISTEN", "127.0.0.1:9000")
    _set_tls(env, certificates)
    if wrong == "another":
        # The key of somebody else; and where a certificate belongs, a key.
        env.setenv(name, str(certificates.client_key))
    else:
        path = tmp_path / "other.pem"
        if wrong == "empty":
            path.touch()
        env.setenv(name, str(path))
    [line] = complaints(_error(Settings))
    assert all(variable in line for variable in OF_TLS)


def test_the_key_is_in_no_repr_of_what_was_read(env: pytest.MonkeyPatch, certificates: Certificates) -> None:
    env.setenv("GATEWAY_TRANSPORT", "grpcio")
    env.setenv("GATEWAY_LISTEN", "127.0.0.1:9000")
    _set_tls(env, certificates)
    read = Settings().tls_files.read()
    assert read is not None
    assert read.key == certificates.key.read_bytes()
    assert "PRIVATE" not in repr(read)


@pytest.mark.parametrize(("first", "ops", "name"), [(65534, 8444, "WORKERS"), (8442, 8444, "OPS_PORT")])
def test_each_process_has_a_port(env: pytest.MonkeyPatch, first: int, ops: int, name: str) -> None:
    env.setenv("GATEWAY_OPS_PORT", str(ops))
    for port, fits in ((first, False), (first - 1, True)):
        env.setenv("GATEWAY_LISTEN", f"127.0.0.1:{port}")
        if fits:
            Settings()
        else:
            [line] = complaints(_error(Settings))
            assert f"GATEWAY_LISTEN=127.0.0.1:{port}" in line
            assert f"GATEWAY_{name}=" in line


def test_what_up_starts_is_on_unix_sockets_whatever_it_inherits(
    env: pytest.MonkeyPatch, certificates: Certificates
) -> None:
    env.setenv("GATEWAY_TRANSPORT", "grpcio")
    env.setenv("GATEWAY_LISTEN", "10.0.0.1:9000")
    _set_tls(env, certificates)
    for name, value in ON_UNIX_SOCKETS.items():
        env.setenv(name, value)
    settings = Settings()
    assert (settings.listen, settings.tls_files.read()) == (None, None)


def _set_tls(env: pytest.MonkeyPatch, certificates: Certificates) -> None:
    for name, path in zip(OF_TLS, (certificates.server, certificates.key, certificates.client_ca), strict=True):
        env.setenv(name, str(path))


def test_settings_cannot_be_changed(env: pytest.MonkeyPatch) -> None:
    del env
    with pytest.raises(ValidationError):
        Settings().workers = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()),
        ("https://app.example", ("https://app.example",)),
        ("https://app.example, http://localhost:3000,", ("https://app.example", "http://localhost:3000")),
    ],
)
def test_browser_origins_are_parted_by_commas(
    monkeypatch: pytest.MonkeyPatch, text: str, origins: tuple[str, ...]
) -> None:
    monkeypatch.setenv("GATEWAY_CORS_ORIGINS", text)
    assert UpSettings().cors_origins == origins


@pytest.mark.parametrize("text", ["*", "app.example", "https://app.example/", '["https://app.example"]'])
def test_what_is_no_origin_is_refused_by_the_name_of_the_variable(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("GATEWAY_CORS_ORIGINS", text)
    with pytest.raises(ValidationError) as caught:
        UpSettings()
    assert any("GATEWAY_CORS_ORIGINS" in line for line in complaints(caught.value))
