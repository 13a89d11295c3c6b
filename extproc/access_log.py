"""How did each request really end? The gRPC access-log service: Envoy says it here, milliseconds after the end.

Entries are best effort and reach any worker. Periodic ones keep the lease of a running stream; the last one settles
the request.
"""

import asyncio
import math
from collections.abc import Callable

import msgspec

from authz import arrival as arrivals
from authz import grant as grants
from extproc import admission as admissions
from extproc import ending as endings
from extproc import wire
from extproc.admission import LEASE_MS
from extproc.record import Admission
from extproc.settlement import Settler
from quota.reservation import QuotaOutage, Reservations
from wire.transport import Service, Stream

SERVICE_NAME = "envoy.service.accesslog.v3.AccessLogService"


class AccessLog:
    """Takes Envoy's access log.

    `observe_error` is told of an entry that could not be read, `observe_first_byte` of the milliseconds that the Router
    took to the first byte of a stream that runs.

    Envoy keeps a stream where it has opened it. Who stands in for another ends it after `stay_seconds`, with the next
    message: the one after that goes to the other again, if he is back.
    """

    def __init__(
        self,
        reservations: Reservations,
        settler: Settler,
        *,
        observe_error: Callable[[Exception], None],
        observe_first_byte: Callable[[Admission, int], None] | None = None,
        stay_seconds: float = math.inf,
    ) -> None:
        self._reservations = reservations
        self._settler = settler
        self._observe_error = observe_error
        self._observe_first_byte = observe_first_byte
        self._stay_seconds = stay_seconds

    def service(self) -> Service:
        """The gRPC service."""
        return Service(name=SERVICE_NAME, unary={}, streams={"StreamAccessLogs": self.follow}, endless=True)

    async def follow(self, stream: Stream) -> None:
        """One Envoy thread's stream of entries, to its end."""
        clock = asyncio.get_running_loop().time
        leave_at = clock() + self._stay_seconds
        while (raw := await stream.read()) is not None:
            for entry in wire.log_entries(raw):
                try:
                    await self._take(entry)
                except msgspec.DecodeError as error:
                    self._observe_error(error)
            if clock() >= leave_at:
                return

    async def _take(self, entry: wire.LogEntry) -> None:
        if entry.is_end:
            self._settle(entry)
        elif entry.is_alive and entry.record:
            admission = admissions.decode(entry.record)
            if self._observe_first_byte is not None and entry.first_byte_ms is not None:
                self._observe_first_byte(admission, entry.first_byte_ms)
            try:
                await self._reservations.renew(
                    admission.organization_id, admission.request_id, lease_ms=LEASE_MS, events=entry.events
                )
            except QuotaOutage:
                return  # the next entry comes in seconds, well before the lease runs out

    def _settle(self, entry: wire.LogEntry) -> None:
        if entry.record:
            admission = admissions.decode(entry.record)
            self._settler.settle(admission, endings.read(entry.observation(), admission))
            return
        grant_text, arrival_text = entry.grant_and_arrival
        if grant_text and not entry.is_refusal:
            # Check let it pass and Process did not answer for it: the client left meanwhile, or Process was too slow.
            # It may hold a reservation.
            admission = _unanswered(grant_text, arrival_text)
            self._settler.settle_if_reserved(admission, endings.read(entry.observation(), admission))


def _unanswered(grant_text: str, arrival_text: str) -> Admission:
    grant, arrival = grants.decode(grant_text), arrivals.decode(arrival_text)
    return Admission(
        request_id=arrival.request_id,
        organization_id=grant.organization_id,
        tenant_id=grant.tenant_id,
        principal_id=grant.principal_id,
        key_id=grant.key_id,
        path=arrival.path,
        model="",
        stream=False,
        metering=grant.metering.value,
        received_ms=arrival.received_ms,
        admitted_ms=arrival.received_ms,
        input_estimate=0,
        output_reserved=0,
    )
