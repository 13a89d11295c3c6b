"""Who may keep the API busy for long? So many at once, and of each tenant a part of them: none takes all places."""

import contextlib
from collections import Counter
from collections.abc import Iterator


class NoPlace(Exception):
    """As many as may are there, of this tenant or of all."""


class Places:
    """The places of one kind of request that lasts."""

    def __init__(self, *, most: int, most_of_each: int) -> None:
        self._most = most
        self._most_of_each = most_of_each
        self._taken: Counter[str] = Counter()

    @contextlib.contextmanager
    def taken_by(self, tenant_id: str) -> Iterator[None]:
        """Hold a place of this tenant. Raises `NoPlace`."""
        if self._taken[tenant_id] >= self._most_of_each or self._taken.total() >= self._most:
            raise NoPlace
        self._taken[tenant_id] += 1
        try:
            yield
        finally:
            self._taken[tenant_id] -= 1
            self._taken += Counter()  # forgets those at 0
