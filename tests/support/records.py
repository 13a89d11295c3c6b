"""Usage records for tests, made from what matters to the test."""

from typing import Any
from uuid import uuid4

import msgspec

from extproc.lifecycle import Cause, State
from extproc.record import Admission, Ending, UsageRecord, UsageSource

NOON = 1_767_268_800_123  # 2026-01-01T12:00:00.123Z
DAY = 86_400_000


def usage_record(**changes: Any) -> UsageRecord:
    """A completed request of ten_a; `changes` are fields of its admission, its ending or the record itself."""
    admission = Admission(
        request_id=str(uuid4()),
        organization_id="org_a",
        tenant_id="ten_a",
        principal_id="key:k",
        key_id="k",
        path="/v1/chat/completions",
        model="demo",
        stream=True,
        metering="native",
        received_ms=NOON,
        admitted_ms=NOON + 2,
        input_estimate=20,
        output_reserved=100,
    )
    ending = Ending(
        state=State.COMPLETED,
        cause=Cause.FINISHED,
        status=200,
        input_tokens=10,
        output_tokens=30,
        usage_source=UsageSource.EXACT,
        events=32,
        response_bytes=4096,
        first_event_ms=NOON + 77,
        ended_ms=NOON + 1000,
    )
    of_ending = {name: value for name, value in changes.items() if name in Ending.__struct_fields__}
    of_record = {name: value for name, value in changes.items() if name in UsageRecord.__struct_fields__}
    of_admission = {name: value for name, value in changes.items() if name not in {*of_ending, *of_record}}
    return UsageRecord(
        admission=msgspec.structs.replace(admission, **of_admission),
        ending=msgspec.structs.replace(ending, **of_ending),
        **of_record,
    )
