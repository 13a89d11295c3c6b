"""On whose behalf does a request run?"""

from typing import NamedTuple

from extproc.record import Admission


class Holder(NamedTuple):
    """A principal, and those above it; `key_id` is empty unless an API key stands behind it."""

    organization_id: str
    tenant_id: str
    principal_id: str
    key_id: str


def holder_of(admission: Admission) -> Holder:
    """On whose behalf an admitted request runs."""
    return Holder(admission.organization_id, admission.tenant_id, admission.principal_id, admission.key_id)
