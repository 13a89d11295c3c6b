"""Is what was asked for refused, and is the field named that is wrong?"""

from collections.abc import Awaitable

import pytest

from store.field_error import FieldError


async def refused(asked: Awaitable[object], field: str, *words: str) -> None:
    with pytest.raises(FieldError) as raised:
        await asked
    assert raised.value.field == field
    assert "\n" not in raised.value.reason
    for word in words:
        assert word in raised.value.reason
