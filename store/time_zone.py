"""Which time zone may a tenant have? One of the IANA database, which says when its calendar's days and months begin."""

import zoneinfo

from store.field_error import FieldError

# Another one on every machine.
_LOCAL = "localtime"


def checked(name: str) -> str:
    """Return the name; raises `FieldError` when there is no such time zone."""
    if name == _LOCAL or name not in zoneinfo.available_timezones():
        raise FieldError("time_zone", f"there is no time zone {name[:60]!r}; one is called like UTC or Europe/Berlin")
    return name
