"""What did a change change? Its fields that differ, as the audit trail keeps them: before and after."""

from collections.abc import Mapping
from typing import Any, TypeAlias

Facts: TypeAlias = dict[str, Any]


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Facts, Facts]:
    """The fields that are not the same, with their values before and after. Both have the same fields."""
    names = [name for name in after if before[name] != after[name]]
    return {name: before[name] for name in names}, {name: after[name] for name in names}
