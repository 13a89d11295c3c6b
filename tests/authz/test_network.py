"""Networks: one normal form, and who lies in them, however the address is written."""

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.network import allows, parse

addresses = st.ip_addresses()
networks = st.tuples(addresses, st.integers(0, 128)).map(
    lambda drawn: ip_network((drawn[0], min(drawn[1], drawn[0].max_prefixlen)), strict=False)
)
numbers_and_dots = st.text("0123456789abcdef.:/%f ", max_size=45)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("2001:DB8:0:0::/32", "2001:db8::/32"),
        ("2001:db8::1", "2001:db8::1/128"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
    ],
)
def test_a_network_has_one_normal_form(text: str, normal: str) -> None:
    assert parse(text) == normal
    assert parse(normal) == normal


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "/8", "10.0.0.0/", "10.0.0.0/33", "::/129", "10.0.0.0/-1", "10.0.0/8", "010.0.0.0/8", "300.0.0.0/8"),
        *("10.0.0.0/255.0.0.0", "10.0.0.0/8/8", "10.0.0.0/8 ", "10.0.0.0/8\n", "10.0.0.0/٨", "fe80::%eth0/64"),
        *("localhost", "acme.example/8", "0x0a000000/8", "\0", "10.0.0.0/8,10.1.0.0/16", "x" * 10_000),
    ],
    ids=ascii,
)
def test_what_is_no_network_is_said_in_one_short_line(text: str) -> None:
    with pytest.raises(ValueError, match="no network") as raised:
        parse(text)
    assert len(str(raised.value)) < 400
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(("text", "around"), [("10.0.0.1/8", "10.0.0.0/8"), ("2001:db8::1/32", "2001:db8::/32")])
def test_a_host_with_a_prefix_is_a_likely_mistake(text: str, around: str) -> None:
    with pytest.raises(ValueError, match=around):
        parse(text)


@given(st.text() | numbers_and_dots)
def test_any_text_is_a_network_or_a_value_error(text: str) -> None:
    try:
        normal = parse(text)
    except ValueError:
        return
    assert parse(normal) == normal


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("::ffff:a01:203", True),
        ("11.0.0.0", False),
        ("2001:db8:ffff::1", True),
        ("2001:DB8::1", True),
        ("2001:db9::1", False),
        ("::a01:203", False),
        *(("", False), ("10.1.2.3:443", False), ("10.1.2", False), ("acme.example", False), ("\0", False)),
    ],
)
def test_who_lies_in_the_networks(address: str, *, allowed: bool) -> None:
    assert allows(("10.0.0.0/8", "2001:db8::/32"), address) is allowed


@pytest.mark.parametrize("address", ["10.1.2.3", "::1", "", "junk"])
def test_without_networks_everyone_may_come_from_anywhere(address: str) -> None:
    assert allows((), address)


def test_every_address_of_one_family_is_none_of_the_other() -> None:
    assert [allows(("::/0",), address) for address in ("2001:db8::1", "10.0.0.1", "::ffff:10.0.0.1")] == [
        *(True, False, False)
    ]
    assert [allows(("0.0.0.0/0",), address) for address in ("2001:db8::1", "10.0.0.1", "::ffff:10.0.0.1")] == [
        *(False, True, True)
    ]


def test_what_cannot_be_read_holds_nobody() -> None:
    assert not allows(("junk",), "10.1.2.3")
    assert allows(("junk", "10.0.0.0/8"), "10.1.2.3")


@given(networks, addresses)
def test_it_is_as_the_numbers_say(network: object, address: IPv4Address | IPv6Address) -> None:
    block = ip_network(parse(str(network)))
    caller = address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
    inside = caller.version == block.version and (int(caller) >> (block.max_prefixlen - block.prefixlen)) == (
        int(block.network_address) >> (block.max_prefixlen - block.prefixlen)
    )
    assert allows((str(network),), str(address)) is inside


@given(st.lists(networks, min_size=1, max_size=3), st.text() | numbers_and_dots)
def test_any_text_is_an_address_or_lies_nowhere(blocks: list[object], text: str) -> None:
    allows(tuple(map(str, blocks)), text)
