"""May this caller make this request? Pure decisions: values in, Grant or Refusal out."""

import hmac
from collections.abc import Mapping
from datetime import datetime

from authz import api_key, routes
from authz.api_key import ApiKey
from authz.directory import KeyRecord
from authz.grant import Grant, PrincipalKind
from authz.refusal import Reason, Refusal
from authz.routes import Route

_BEARER = "bearer"
_JSON = "application/json"
# Anthropic's SDKs send x-api-key, Azure's api-key.
_KEY_HEADERS = ("x-api-key", "api-key")


def route(method: str, target: str) -> Route | Refusal:
    """The route of a request; a path that is not in the table does not exist."""
    found = routes.find(target)
    if found is None:
        return Refusal(reason=Reason.UNKNOWN_PATH)
    if found.method != method:
        return Refusal(
            reason=Reason.METHOD_NOT_ALLOWED, headers=(("allow", found.method),), details={"allow": [found.method]}
        )
    return found


def credential(headers: Mapping[str, str]) -> ApiKey | Refusal:
    """The one key that the headers carry."""
    given = {headers[name].strip() for name in _KEY_HEADERS if name in headers}
    authorization = headers.get("authorization")
    if authorization is not None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != _BEARER:
            return Refusal(reason=Reason.INVALID_API_KEY, message="The authorization scheme must be Bearer.")
        given.add(token.strip())
    if not given:
        return Refusal(reason=Reason.MISSING_CREDENTIALS)
    if len(given) > 1:
        return Refusal(reason=Reason.CONFLICTING_CREDENTIALS)
    return api_key.parse(given.pop()) or Refusal(reason=Reason.INVALID_API_KEY)


def grant(key: ApiKey, record: KeyRecord | None, *, pepper: bytes, now: datetime) -> Grant | Refusal:
    """The Grant of a key. Unknown, wrong, revoked and expired look alike to the caller."""
    presented = api_key.keyed_hash(key.text, pepper)
    # An unknown key is compared as well, with itself turned round, so that it takes as long as a wrong one.
    expected = presented[::-1] if record is None else record.hash
    if not hmac.compare_digest(presented, expected) or record is None or _is_over(record, now):
        return Refusal(reason=Reason.INVALID_API_KEY)
    if record.tenant_suspended or record.organization_suspended:
        return Refusal(reason=Reason.TENANT_SUSPENDED)
    return Grant(
        organization_id=record.organization_id,
        tenant_id=record.tenant_id,
        principal_id=f"key_{record.id}",
        principal_kind=PrincipalKind.API_KEY,
        key_id=record.id,
        plan=record.plan,
        limits=record.limits,
        metering=record.metering,
    )


def body_headers(headers: Mapping[str, str]) -> Refusal | None:
    """Whether the headers announce a body that can be read. Envoy has the whole body by now and has set its length."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
        return Refusal(reason=Reason.UNSUPPORTED_MEDIA_TYPE, param="content-type")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        return Refusal(reason=Reason.UNSUPPORTED_ENCODING, param="content-encoding")
    if headers.get("content-length", "0") == "0":
        return Refusal(reason=Reason.MISSING_BODY)
    return None


def _is_over(record: KeyRecord, now: datetime) -> bool:
    return record.revoked_at is not None or (record.expires_at is not None and record.expires_at <= now)
