"""What do the bodies of `/v1/sessions` look like? The shapes that are read, written and documented."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from authz.session import Session

LONGEST_NAME = 100
_MS_PER_SECOND = 1000

Seconds = Annotated[int, Field(strict=True, ge=1)]


class Transport(StrEnum):
    """How a session's token travels."""

    BEARER = "bearer"
    COOKIE = "cookie"


class Exchange(BaseModel):
    """What to exchange the credential of the request for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    transport: Transport = Field(
        default=Transport.BEARER,
        description="`bearer`: the token is in the answer, for an Authorization header. `cookie`: it is in a cookie "
        "that scripts cannot read, and each change needs the answer's CSRF token.",
    )
    name: str = Field(default="", max_length=LONGEST_NAME, description="What to call the session in lists.")
    idle_seconds: Seconds | None = Field(
        default=None, description="After how long without a request it ends; by default as long as the gateway allows."
    )
    lifetime_seconds: Seconds | None = Field(
        default=None, description="After how long it ends in any case; by default as long as the gateway allows."
    )


class NewSession(BaseModel):
    """A session that was just made. What is secret in it is shown here once."""

    id: str
    transport: Transport
    name: str
    principal_id: str
    tenant_id: str
    created_at: datetime
    expires_at: datetime = Field(description="When it ends in any case.")
    idle_seconds: int = Field(description="After how long without a request it ends.")
    token: str | None = Field(default=None, repr=False, description="For `Authorization: Bearer`; with `bearer` only.")
    csrf_token: str | None = Field(default=None, repr=False, description="For `x-csrf-token`; with `cookie` only.")


class LiveSession(BaseModel):
    """A session that has not ended."""

    id: str
    transport: Transport
    name: str
    source: str = Field(description="The address that it was made from.")
    created_at: datetime
    last_used_at: datetime
    ends_at: datetime = Field(description="When it ends if it is not used again.")
    expires_at: datetime = Field(description="When it ends in any case.")
    idle_seconds: int
    current: bool = Field(description="Whether this request came by it.")

    @classmethod
    def of(cls, session: Session, *, current_id: str) -> Self:
        """Show a session to the caller who came by the session `current_id`, if by any."""
        return cls(
            id=session.id,
            transport=transport_of(session),
            name=session.name,
            source=session.source,
            created_at=moment(session.created_ms),
            last_used_at=moment(session.last_used_ms),
            ends_at=moment(session.ends_ms),
            expires_at=moment(session.expires_ms),
            idle_seconds=session.idle_ms // _MS_PER_SECOND,
            current=session.id == current_id,
        )


class SessionList(BaseModel):
    """The live sessions of one principal, the newest first."""

    data: list[LiveSession]


class Revoked(BaseModel):
    """How many sessions were ended."""

    revoked: int


def transport_of(session: Session) -> Transport:
    """How the session's token travels."""
    return Transport.COOKIE if session.cookie else Transport.BEARER


def moment(ms: int) -> datetime:
    """An aware time in UTC, of milliseconds since the epoch."""
    return datetime.fromtimestamp(ms / _MS_PER_SECOND, UTC)
