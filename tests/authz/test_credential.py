"""Which credentials does a request carry, in whatever header a client's SDK puts them?"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz import api_key, certificate, credential, session
from authz.credential import Credentials
from authz.refusal import Reason, Refusal
from tests.support.client_certificates import Issuer, dns, uri

KEY, OTHER = api_key.generate("test"), api_key.generate("test")
SESSION = session.generate(7)
NOW = datetime.now(UTC)
COOKIE = f"__Host-igw_session={SESSION.text}"


def read(headers: dict[str, str], pem: str = "") -> Credentials | Reason:
    found = credential.read(headers, pem, dns_names=False, now=NOW)
    return found.reason if isinstance(found, Refusal) else found


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"authorization": "Bearer {key}"}, "{key}"),
        ({"authorization": "bearer {key}"}, "{key}"),
        ({"authorization": "BEARER   {key}  "}, "{key}"),
        ({"x-api-key": "{key}"}, "{key}"),
        ({"api-key": " {key} "}, "{key}"),
        ({"authorization": "Bearer {key}", "x-api-key": "{key}", "api-key": "{key}"}, "{key}"),
        ({}, Reason.MISSING_CREDENTIALS),
        ({"cookie": "key={key}", "x-key": "{key}", "proxy-authorization": "Bearer {key}"}, Reason.MISSING_CREDENTIALS),
        ({"authorization": ""}, Reason.INVALID_API_KEY),
        ({"authorization": "{key}"}, Reason.INVALID_API_KEY),
        ({"authorization": "Basic {key}"}, Reason.INVALID_API_KEY),
        ({"authorization": "Bearer{key}"}, Reason.INVALID_API_KEY),
        ({"authorization": "Basic {key}", "x-api-key": "{key}"}, Reason.INVALID_API_KEY),
        ({"authorization": "Bearer"}, ""),
        ({"authorization": "Bearer "}, ""),
        ({"x-api-key": ""}, ""),
        ({"authorization": "Bearer {key},Bearer {key}"}, "{key},Bearer {key}"),  # the header came twice
        ({"x-api-key": "Bearer {key}"}, "Bearer {key}"),
        ({"authorization": "Bearer {key}", "x-api-key": "{other}"}, Reason.CONFLICTING_CREDENTIALS),
        ({"authorization": "Bearer {key}", "x-api-key": "nonsense"}, Reason.CONFLICTING_CREDENTIALS),
        ({"authorization": "Bearer nonsense", "api-key": "{key}"}, Reason.CONFLICTING_CREDENTIALS),
        ({"x-api-key": "{key}", "api-key": "{other}"}, Reason.CONFLICTING_CREDENTIALS),
        ({"x-api-key": "{key}", "api-key": ""}, Reason.CONFLICTING_CREDENTIALS),
    ],
)
def test_the_one_token_of_the_headers(headers: dict[str, str], found: str | Reason) -> None:
    answer = read({name: value.format(key=KEY.text, other=OTHER.text) for name, value in headers.items()})
    if isinstance(found, Reason):
        assert answer is found
    else:
        assert isinstance(answer, Credentials)
        assert answer.token == found.format(key=KEY.text)


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


def test_a_cookie_and_a_certificate_stand_beside_the_token(issuer: Issuer) -> None:
    pem = quote(issuer.issue(uri("spiffe://acme.example/robot")).pem)
    shown = read({"x-api-key": KEY.text, "cookie": f"a=b; {COOKIE}"}, pem)
    assert isinstance(shown, Credentials)
    assert shown == Credentials(
        token=KEY.text,
        cookie=SESSION.text,
        certificate_names=("spiffe://acme.example/robot",),
        certificate_shown=True,
    )
    assert isinstance(read({"cookie": COOKIE}), Credentials)
    assert isinstance(read({}, pem), Credentials)


@pytest.mark.parametrize(
    ("names", "with_dns", "found"),
    [
        (["spiffe://a/b"], False, ("spiffe://a/b",)),
        (["spiffe://a/b", "dns:Host.Example"], False, ("spiffe://a/b",)),
        (["spiffe://a/b", "dns:Host.Example"], True, ("spiffe://a/b", "dns:host.example")),
        (["dns:one.example", "dns:two.example"], True, ("dns:one.example", "dns:two.example")),
        (["dns:one.example"], False, ()),
        # Section 2 of X509-SVID: with two URIs it is none.
        (["spiffe://a/b", "spiffe://a/c"], True, ()),
        (["https://a/b"], True, ()),
    ],
)
def test_whom_a_certificate_names(issuer: Issuer, names: list[str], found: tuple[str, ...], *, with_dns: bool) -> None:
    general = [dns(name[4:]) if name.startswith("dns:") else uri(name) for name in names]
    assert certificate.names(quote(issuer.issue(*general).pem), dns=with_dns, now=NOW) == found


def test_a_certificate_names_nobody_once_it_has_ended(issuer: Issuer) -> None:
    # The connection it came by may be older than its end.
    pem = quote(issuer.issue(uri("spiffe://a/b"), lifetime=timedelta(hours=2)).pem)
    assert certificate.names(pem, dns=False, now=NOW) == ("spiffe://a/b",)
    assert certificate.names(pem, dns=False, now=NOW + timedelta(hours=3)) == ()


@given(st.text())
def test_what_is_no_certificate_names_nobody(text: str) -> None:
    assert certificate.names(text, dns=True, now=NOW) == ()


def test_an_audit_row_names_what_was_shown_and_not_the_secret() -> None:
    tokens = {
        KEY.text: f"key:{KEY.id}",
        SESSION.text: f"session:{SESSION.id}",
        "sk-proj-abc": "token:",
    }
    for text, expected in tokens.items():
        name = Credentials(token=text).fingerprint
        assert name.startswith(expected)
        assert text not in name
    assert Credentials(cookie=SESSION.text).fingerprint == f"session:{SESSION.id}"
    assert Credentials(certificate_names=("spiffe://a/b",), certificate_shown=True).fingerprint == (
        "certificate:spiffe://a/b"
    )


def test_what_was_shown_never_shows() -> None:
    shown = repr(Credentials(token=KEY.text, cookie=SESSION.text))
    assert KEY.text not in shown
    assert SESSION.text not in shown


@given(
    st.dictionaries(st.sampled_from(["authorization", "x-api-key", "api-key", "cookie", "other"]), st.text()),
    st.text(max_size=50),
)
def test_any_headers_can_be_read_and_named(headers: dict[str, str], pem: str) -> None:
    found = credential.read(headers, pem, dns_names=True, now=NOW)
    if isinstance(found, Credentials):
        assert found.fingerprint
