"""Which addresses are public, and which URLs a webhook may have."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import webhook_url
from store.field_error import FieldError
from store.public_address import is_public

PUBLIC = ("8.8.8.8", "1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001:82b::200e")
NOT_PUBLIC = (
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1"),  # noqa: S104
    *("169.254.169.254", "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "198.18.0.1"),
    *("224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "203.0.113.7", "192.88.99.1"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "100::1"),
    *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::1"),
    *("2001:0:7f00:1::1", "2001:db8::1", "3fff::1", "5f00::1", "4000::1"),
    *("", "localhost", "1.2.3", "0x7f.1", "example.com"),
)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_public(address: str) -> None:
    assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_nothing_that_holds_an_ipv4_address_inside_is_public(address: IPv4Address) -> None:
    number = int(address)
    for block in (0, 0xFFFF << 32, 0x64FF9B << 96, 0x2002 << 112 | number << 80, 0x20010000 << 96):
        assert not is_public(str(IPv6Address(block | number if block >> 112 != 0x2002 else block)))


@given(st.ip_addresses())
def test_what_python_calls_private_is_never_public(address: IPv4Address | IPv6Address) -> None:
    if is_public(str(address)):
        assert ip_address(str(address)).is_global
        assert not address.is_multicast
        assert not address.is_link_local


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com/in",
        "https://hooks.example.com",
        "https://hooks.example.com:8443/a/b?token=c%20d",
        "https://xn--bcher-kva.example/",
        "https://8.8.8.8/in",
        "https://[2606:4700:4700::1111]:443/in",
    ],
)
def test_a_url_that_a_webhook_may_have(url: str) -> None:
    assert webhook_url.checked(url, allow_private=False) == url


@pytest.mark.parametrize(
    "url",
    [
        *("", "hooks.example.com", "/in", "https://", "https:///in", "https://:443/in", "ftp://example.com/in"),
        *("http://example.com/in", "HTTP://example.com", "file:///etc/passwd", "unix:///run/x.sock"),
        *("https://user:password@example.com/in", "https://user@example.com/in", "https://@example.com/in"),
        *("https://example.com/in#part", "https://example.com/a b", "https://example.com/\n", "https://exämple.com/"),
        *("https://example.com:0/in", "https://example.com:65536/in", "https://example.com:x/in"),
        *("https://example.com\\@internal/in", f"https://example.com/{'x' * 2048}", f"https://{'a.' * 127}com/"),
        *("https://localhost/in", "https://db/in", "https://a.localhost/in", "https://127.0.0.1/in"),
        *("https://169.254.169.254/latest", "https://10.0.0.1/in", "https://[::1]/in", "https://[fe80::1%25eth0]/in"),
        *("https://[::ffff:10.0.0.1]/in", "https://127.1/in", "https://2130706433/in", "https://0x7f.0x1/in"),
        *("https://0177.0.0.1/in", "https://1.2.3.4./in", "https://[::1/in"),
    ],
)
def test_a_url_that_a_webhook_may_not_have(url: str) -> None:
    with pytest.raises(FieldError) as raised:
        webhook_url.checked(url, allow_private=False)
    assert raised.value.field == "url"
    assert "password" not in raised.value.reason


@pytest.mark.parametrize("url", ["http://localhost:8080/in", "http://127.0.0.1/in", "https://db/in"])
def test_a_url_for_trying_out(url: str) -> None:
    assert webhook_url.checked(url, allow_private=True) == url
    for other in ("https://user@localhost/in", "ftp://localhost/in", "http://localhost/in#x"):
        with pytest.raises(FieldError):
            webhook_url.checked(other, allow_private=True)
