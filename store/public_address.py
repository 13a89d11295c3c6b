"""Which addresses may the gateway connect to on a tenant's word? Those of the public internet, and no others.

A tenant chooses where its webhooks go. Without this, the gateway would knock for it at whatever stands beside the
gateway: a metadata service, a database, the operator's own network.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

# Global by the registry, but not of anybody's public server.
_SPECIAL_V4 = tuple(
    map(
        IPv4Network,
        (
            "192.0.0.0/24",  # RFC 6890: protocol assignments; some clouds have their metadata here
            "192.88.99.0/24",  # RFC 7526: 6to4 relays, given up
            "168.63.129.16/32",  # the platform of Azure, seen from its machines
        ),
    )
)
# RFC 4291 section 2.4: what is global unicast today. It leaves out mapped and translated IPv4, ULA, link-local,
# multicast, and the discard prefix.
_GLOBAL_V6 = IPv6Network("2000::/3")
_SPECIAL_V6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # RFC 2928: protocol assignments, with Teredo, which holds an IPv4 address
            "2001:db8::/32",  # RFC 3849: documentation
            "2002::/16",  # RFC 3056: 6to4, which holds an IPv4 address
            "3fff::/20",  # RFC 9637: documentation
        ),
    )
)


def is_public(text: str) -> bool:
    """Whether this is an address of the public internet; what is no address is not."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return _public_v4(address) if isinstance(address, IPv4Address) else _public_v6(address)


def _public_v4(address: IPv4Address) -> bool:
    apart = address.is_multicast or address.is_reserved or any(address in block for block in _SPECIAL_V4)
    return address.is_global and not apart


def _public_v6(address: IPv6Address) -> bool:
    if address.scope_id is not None:
        return False
    return address in _GLOBAL_V6 and address.is_global and not any(address in block for block in _SPECIAL_V6)
