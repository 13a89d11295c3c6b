"""May a caller come from this address? Networks are CIDR blocks (RFC 4632, RFC 4291 section 2.3).

An IPv4 caller on a socket for both families has an IPv4-mapped address (RFC 4291 section 2.5.5.2); it counts as the
IPv4 address that it is. So `::/0` is every IPv6 caller, and no IPv4 caller.
"""

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

_MAPPED = IPv6Network("::ffff:0:0/96")


def parse(text: str) -> str:
    """The block in its one normal form, `10.0.0.0/8` or `2001:db8::/32`; an address alone is a block of one.

    `ValueError`, for the person who wrote it, when it is no block or has bits set behind its prefix.
    """
    address, slash, prefix = text.partition("/")
    if "%" in text or (slash and not (prefix.isascii() and prefix.isdigit())):
        raise ValueError(f"{text[:60]!r} is no network like 10.0.0.0/8 or 2001:db8::/32")
    try:
        block = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text[:60]!r} is no network like 10.0.0.0/8 or 2001:db8::/32") from None
    if ip_address(address) != block.network_address:
        raise ValueError(f"{text!r} has bits set behind its prefix; the network around it is {_unmapped(block)}")
    return str(_unmapped(block))


@lru_cache(maxsize=100_000)
def allows(networks: tuple[str, ...], address: str) -> bool:
    """Whether the address lies in one of the networks, or there are none. What is no address lies in none."""
    if not networks:
        return True
    caller = _address(address)
    return caller is not None and any(
        caller.version == block.version and caller in block for block in _blocks(networks)
    )


@lru_cache(maxsize=10_000)
def _blocks(networks: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    """The networks, read; what is no network holds no address."""
    return tuple(block for block in map(_block, networks) if block is not None)


def _block(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(parse(text))
    except ValueError:
        return None


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _unmapped(block: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    if isinstance(block, IPv6Network) and block.subnet_of(_MAPPED):
        return IPv4Network((int(block.network_address) & 0xFFFF_FFFF, block.prefixlen - 96))
    return block
