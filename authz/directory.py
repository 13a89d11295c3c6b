"""Where are principals looked up? `Directory` is the promise; `store.directory` keeps it with Postgres.

The copy that the hot path asks is in `authz/cached_directory.py`.
"""

from typing import Protocol

from authz.principal import Handle, Principal


class DirectoryOutage(Exception):
    """The directory cannot be asked now; whether the principal exists is unknown."""


class Directory(Protocol):
    """Looks up what identity decisions need."""

    async def find(self, handle: Handle) -> Principal | None:
        """The principal of this handle, revoked and suspended ones included; None when there is none.

        A JWT's subject is there whenever its tenant is. Raises `DirectoryOutage` when the answer cannot be had.
        """
