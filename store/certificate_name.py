"""What may a client certificate say that its bearer is called? A SPIFFE id, or the name of a host.

SPIFFE ids: https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md, section 2; that a workload's has a path:
X509-SVID.md, section 2. Hosts: RFC 1123, section 2.1.
"""

import re

from store.field_error import FieldError

FIELD = "certificate_name"
MAX_SPIFFE_BYTES = 2048
MAX_TRUST_DOMAIN_BYTES = 255
MAX_HOST_BYTES = 253
_SPIFFE, _DNS = "spiffe://", "dns:"
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def checked(name: str) -> str:
    """Return `spiffe://trust-domain/path`, or `dns:host` in lower case; raises `FieldError` for anything else.

    A SPIFFE id is compared octet by octet, so it is taken as it is or not at all.
    """
    if name.startswith(_SPIFFE):
        fault = _spiffe_fault(name)
        stored = name
    elif name.startswith(_DNS):
        # Only ASCII: lower() makes a k of the sign of the kelvin.
        stored = name.lower() if name.isascii() else name
        fault = _host_fault(stored.removeprefix(_DNS))
    else:
        raise FieldError(FIELD, f"{name[:80]!r} is neither like spiffe://acme.example/search nor like dns:host.example")
    if fault is not None:
        raise FieldError(FIELD, f"{name[:80]!r}: {fault}")
    return stored


def _spiffe_fault(name: str) -> str | None:
    domain, _, path = name.removeprefix(_SPIFFE).partition("/")
    if len(name.encode(errors="replace")) > MAX_SPIFFE_BYTES:
        return f"a SPIFFE id has at most {MAX_SPIFFE_BYTES} bytes"
    if not _TRUST_DOMAIN.fullmatch(domain) or len(domain) > MAX_TRUST_DOMAIN_BYTES:
        return f"a trust domain has 1 to {MAX_TRUST_DOMAIN_BYTES} of a-z, 0-9, '.', '-' and '_', and no port"
    if not path:
        return "a workload has a path behind its trust domain"
    for segment in path.split("/"):
        if not _SEGMENT.fullmatch(segment) or segment in {".", ".."}:
            return "each segment of the path has letters, digits, '.', '-' and '_', and is not '.' or '..'"
    return None


def _host_fault(host: str) -> str | None:
    labels = host.split(".")
    if len(host) > MAX_HOST_BYTES or not all(_LABEL.fullmatch(label) for label in labels):
        return f"a host has at most {MAX_HOST_BYTES} characters: letters, digits and '-', between dots"
    return "this is an address; a certificate names a host" if labels[-1].isdigit() else None
