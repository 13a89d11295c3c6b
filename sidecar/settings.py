"""What can be configured, and from where? Every setting is read once, from the environment, here.

All errors are reported together, each naming its variable; secrets never show in a `repr`.
"""

import socket
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, HttpUrl, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from authz.issuer import parse_issuers
from sidecar import listening
from sidecar.listening import TlsFiles, Transport
from sidecar.origins import require_origin
from transport.address import TcpAddress

# Secrets that stand in examples and blog posts are none.
WELL_KNOWN_SECRETS = frozenset({"change-me", "changeme", "default", "pepper", "secret", "insecure", "password"})
MIN_PEPPER_LENGTH = 32
MIN_ROUTER_KEY_LENGTH = 16
# A Unix socket's path holds at most 107 bytes (sun_path); this leaves room for "/worker-999.sock".
MAX_SOCKET_DIR_LENGTH = 90

Port = Annotated[int, Field(ge=1, le=65535)]
Workers = Annotated[int, Field(ge=1, le=64)]
BodyBytes = Annotated[int, Field(ge=1024)]
MAX_BODY_BYTES = 4 * 1024 * 1024
_BODY_BYTES = "Largest request body. Envoy's buffer filter must have the same limit."


class StoreSettings(BaseSettings):
    """What the administrative commands need: the database and the pepper of the keys."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", frozen=True, extra="ignore", hide_input_in_errors=True)

    database_url: SecretStr = Field(
        validation_alias=AliasChoices("DATABASE_URL", "database_url"),
        description="Postgres, as `postgresql://user:password@host:5432/name`.",
    )
    key_pepper: SecretStr = Field(
        description="Key of the keyed hashes of API keys, sessions and the audit trail, and of stored signing keys."
    )
    webhook_allow_private: bool = Field(
        default=False,
        description="Whether webhooks may go to http and to private addresses. For trying out: on, a tenant can have "
        "the gateway send to whatever stands beside it.",
    )

    @field_validator("key_pepper")
    @classmethod
    def _pepper_is_secret(cls, pepper: SecretStr) -> SecretStr:
        value = pepper.get_secret_value()
        if _well_known(value) or len(value) < MIN_PEPPER_LENGTH:
            raise ValueError(
                f"must be at least {MIN_PEPPER_LENGTH} characters and no well-known default; "
                "make one with: openssl rand -hex 32"
            )
        return pepper


class Settings(StoreSettings):
    """Everything `inference-gateway serve` reads."""

    redis_url: SecretStr = Field(
        validation_alias=AliasChoices("REDIS_URL", "redis_url"),
        description="Redis, as `redis://`, `rediss://` or `unix://`.",
    )
    socket_dir: Path = Field(
        description="Folder of the Unix sockets: worker-0.sock and so on, recorder.sock, control.sock."
    )
    socket_mode: Annotated[str, Field(pattern="^0[0-7]{3}$")] = Field(
        default="0600",
        description="File mode of the sockets, octal; 0660 when Envoy runs as another user of the group.",
    )
    workers: Workers = Field(
        default=2, description="Number of worker processes. Envoy's configuration must list as many sockets."
    )
    transport: Transport = Field(
        default=Transport.LEAN,
        description="Which gRPC server answers Envoy: `lean`, which costs a tenth, for an Envoy on this host; or "
        "`grpcio`, which has TLS, for any.",
    )
    listen: Annotated[TcpAddress | None, NoDecode] = Field(
        default=None,
        description="`HOST:PORT`, where Envoy reaches the workers and the recorder instead of at their Unix sockets: "
        "the first worker at this IP address and port, each other one, and then the recorder, at the next port.",
    )
    listen_certificate: Path | None = Field(
        default=None, description="With GATEWAY_LISTEN: the certificate that Envoy is shown, with its chain, as PEM."
    )
    listen_key: Path | None = Field(default=None, description="The key of GATEWAY_LISTEN_CERTIFICATE, as PEM.")
    listen_client_ca: Path | None = Field(
        default=None,
        description="The CA of Envoy's own certificate, as PEM: who has none of its certificates is not answered.",
    )
    replica: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        description="Name of this replica. Two that run at the same time must differ; by default the host's name.",
    )
    ops_host: str = Field(default="127.0.0.1", description="Address of /livez, /readyz and /metrics.")
    ops_port: Port = Field(default=8444, description="Port of /livez, /readyz and /metrics.")
    max_body_bytes: BodyBytes = Field(default=MAX_BODY_BYTES, description=_BODY_BYTES)
    # Envoy waits 2 s for an admission, which may ask for its limits three times (extproc/admitter.py).
    quota_deadline_seconds: Annotated[float, Field(gt=0, le=0.6)] = Field(
        default=0.05, description="How long a request waits for its limits before it is refused with 503."
    )
    replicas: Annotated[int, Field(ge=1)] = Field(
        default=1,
        description="How many sidecars share the limits. While Redis is away, each worker of each lets its share of a "
        "limit of class `local` pass.",
    )
    redis_cluster: bool = Field(default=False, description="Whether REDIS_URL names a node of a Redis Cluster.")
    bytes_per_token: Annotated[float, Field(ge=1, le=16)] = Field(
        default=4.0, description="What a token of a prompt is taken to be, until requests of its model have shown it."
    )
    overload_first_byte_seconds: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Time to the Router's first byte, at the median of a second, beyond which it counts as overloaded; "
        "not set: never.",
    )
    overload_error_share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Share of the Router's answers that may be 5xx before it counts as overloaded; not set: any.",
    )
    idempotency_hours: Annotated[int, Field(ge=1, le=720)] = Field(
        default=24, description="For how long an idempotency key stands for its first request, from its first use."
    )
    drain_seconds: Annotated[float, Field(ge=0)] = Field(
        default=30.0, description="How long running streams may go on after SIGTERM."
    )
    # A limit's window may be a month, or 31 days: what it counts is read from the ledger.
    ledger_retention_months: Annotated[int, Field(ge=2)] | None = Field(
        default=None,
        description="How many whole months of the ledger are kept beside the current one; not set: all, for ever.",
    )
    log_format: Literal["console", "json"] = Field(default="console", description="For people, or for machines.")

    jwt_issuers: Annotated[str, Field(repr=False)] = Field(
        default="[]", description="Who issues the JWTs that are accepted: a JSON list, see docs/jwt.md."
    )
    jwks_ca: Path | None = Field(
        default=None, description="CA certificates that vouch for the issuers' servers; the system's, when not set."
    )
    certificate_dns_names: bool = Field(
        default=False,
        description="Whether a client certificate's DNS names prove a workload, beside its SPIFFE id.",
    )
    router_api_key: SecretStr | None = Field(
        default=None,
        description="Sent to the Router as x-internal-api-key, for one that cannot verify x-gateway-identity.",
    )
    router_url: HttpUrl | None = Field(
        default=None,
        description="Where the Router is asked to stop a request that was cancelled, as `DELETE /v1/infer/{id}`; not "
        "set: it is not asked, and sees its connection closed.",
    )
    end_revoked_streams: bool = Field(
        default=False,
        description="Whether running requests end when their key, principal, tenant or organization is revoked, "
        "suspended or deleted. By default they run to their end, and are billed: what has been paid for is not thrown "
        "away, and a key can be replaced without breaking what runs.",
    )
    session_idle_seconds: Annotated[int, Field(ge=60)] = Field(
        default=1800, description="After how long without a request a session ends, at most."
    )
    session_lifetime_seconds: Annotated[int, Field(ge=60)] = Field(
        default=43_200, description="After how long a session ends in any case, at most."
    )
    failure_limit: Annotated[int, Field(ge=1)] = Field(
        default=30, description="Wrong credentials from one address in a minute before it is refused early."
    )

    @field_validator("router_api_key")
    @classmethod
    def _router_key_is_secret(cls, key: SecretStr | None) -> SecretStr | None:
        value = None if key is None else key.get_secret_value()
        if value is None or (not _well_known(value) and len(value) >= MIN_ROUTER_KEY_LENGTH and _visible(value)):
            return key
        raise ValueError(
            f"must be at least {MIN_ROUTER_KEY_LENGTH} visible ASCII characters and no well-known default; "
            "make one with: openssl rand -hex 32"
        )

    @field_validator("jwt_issuers")
    @classmethod
    def _issuers_can_be_read(cls, text: str) -> str:
        parse_issuers(text)
        return text

    @field_validator("listen", "listen_certificate", "listen_key", "listen_client_ca", mode="before")
    @classmethod
    def _empty_is_not_set(cls, text: object) -> object:
        return None if text == "" else text

    @field_validator("listen", mode="before")
    @classmethod
    def _host_and_port(cls, text: object) -> object:
        return listening.parse(text) if isinstance(text, str) and text else text

    @model_validator(mode="after")
    def _peers_are_known(self) -> Self:
        listening.require_known_peers(self.transport, self.listen, self.tls_files)
        listening.require_ports(self.listen, self.workers, self.ops_port)
        return self

    @property
    def tls_files(self) -> TlsFiles:
        """What TLS at `listen` is made of."""
        return TlsFiles(self.listen_certificate, self.listen_key, self.listen_client_ca)

    @model_validator(mode="after")
    def _socket_paths_fit(self) -> Self:
        if len(str(self.socket_dir.absolute())) > MAX_SOCKET_DIR_LENGTH:
            raise ValueError(
                f"GATEWAY_SOCKET_DIR is longer than {MAX_SOCKET_DIR_LENGTH} characters; a Unix socket's path holds 107"
            )
        return self


class UpSettings(BaseSettings):
    """What `inference-gateway up` reads beside the defaults it makes itself."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", frozen=True, extra="ignore", hide_input_in_errors=True)

    port: Port = Field(default=8443, description="Port of Envoy's public TLS listener.")
    state: Path = Field(default=Path(".run"), description="Folder of all data, logs, certificates and sockets.")
    ops_port: Port | None = Field(default=None, description="Port of the sidecar's health; default: port + 1.")
    workers: Workers = Field(default=2, description="Number of worker processes.")
    max_body_bytes: BodyBytes = Field(default=MAX_BODY_BYTES, description="Largest request body.")
    router_url: HttpUrl | None = Field(
        default=None,
        validation_alias=AliasChoices("ROUTER_URL", "router_url"),
        description="An OpenAI-compatible server to put behind the gateway instead of the stand-in Router.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Browser origins that may call the gateway, such as `https://app.example`; with commas."
    )

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _separated_by_commas(cls, origins: object) -> object:
        return tuple(filter(None, map(str.strip, origins.split(",")))) if isinstance(origins, str) else origins

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(require_origin(origin) for origin in origins)


def _well_known(secret: str) -> bool:
    return secret.lower() in WELL_KNOWN_SECRETS


def _visible(text: str) -> bool:
    return text.isascii() and all(character.isprintable() and character != " " for character in text)
