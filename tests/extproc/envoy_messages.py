"""What Envoy sends to ext_proc and to the access log, made by betterproto: a codec that the product does not use."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.data.accesslog import v3 as data
from envoy_data_plane.envoy.service.accesslog import v3 as accesslog
from envoy_data_plane.envoy.service.ext_proc import v3 as ext_proc
from envoy_data_plane.google.protobuf import Struct, Value

from authz import grant as grants
from authz.arrival import Arrival
from authz.grant import Grant
from tests.support.values import NOON_MS

AUTHZ = "envoy.filters.http.ext_authz"


def struct(values: Mapping[str, str | float]) -> Struct:
    return Struct(
        fields={
            name: Value(string_value=value) if isinstance(value, str) else Value(number_value=float(value))
            for name, value in values.items()
        }
    )


def metadata(namespaces: Mapping[str, Mapping[str, str | float]]) -> core.Metadata:
    return core.Metadata(filter_metadata={name: struct(values) for name, values in namespaces.items()})


def beside(grant: Grant, arrival: Arrival) -> dict[str, Mapping[str, str | float]]:
    """What Check left, and the key that Envoy adds of its own."""
    return {
        AUTHZ: {
            "grant": grants.encode(grant),
            "arrival": msgspec.json.encode(arrival).decode(),
            "ext_authz_duration": 3.0,
        }
    }


def request_body(
    body: bytes, namespaces: Mapping[str, Mapping[str, str | float]], *, end_of_stream: bool = True
) -> ext_proc.ProcessingRequest:
    return ext_proc.ProcessingRequest(
        request_body=ext_proc.HttpBody(body=body, end_of_stream=end_of_stream), metadata_context=metadata(namespaces)
    )


def response_headers(**headers: str) -> ext_proc.ProcessingRequest:
    values = [core.HeaderValue(key=name.replace("_", "-"), raw_value=value.encode()) for name, value in headers.items()]
    return ext_proc.ProcessingRequest(response_headers=ext_proc.HttpHeaders(headers=core.HeaderMap(headers=values)))


def response_body(body: bytes, *, end_of_stream: bool = False) -> ext_proc.ProcessingRequest:
    return ext_proc.ProcessingRequest(response_body=ext_proc.HttpBody(body=body, end_of_stream=end_of_stream))


def response_trailers() -> ext_proc.ProcessingRequest:
    return ext_proc.ProcessingRequest(response_trailers=ext_proc.HttpTrailers(trailers=core.HeaderMap()))


def log_entry(
    *,
    kind: int = 6,
    status: int = 200,
    details: str = "via_upstream",
    flags: data.ResponseFlags | None = None,
    response_bytes: int = 0,
    namespaces: Mapping[str, Mapping[str, str | float]] | None = None,
    router_ms: tuple[float, float] | None = None,
    dispatched_ms: float | None = None,
) -> data.HttpAccessLogEntry:
    """An entry of a request that began at noon and took 1.5 seconds; `kind` 6 is its end, 5 a sign of life.

    `router_ms` are when the Router had the whole request, and when the first byte of its answer came; `dispatched_ms`
    when it had the first byte of the request.
    """
    sent, received = (timedelta(milliseconds=ms) for ms in router_ms) if router_ms else (None, None)
    return data.HttpAccessLogEntry(
        common_properties=data.AccessLogCommon(
            access_log_type=data.AccessLogType(kind),
            start_time=datetime.fromtimestamp(NOON_MS / 1000, UTC) + timedelta(milliseconds=250),
            duration=timedelta(milliseconds=1500),
            response_flags=flags,
            metadata=metadata(namespaces or {}),
            time_to_first_upstream_tx_byte=None if dispatched_ms is None else timedelta(milliseconds=dispatched_ms),
            time_to_last_upstream_tx_byte=sent,
            time_to_first_upstream_rx_byte=received,
        ),
        response=data.HttpResponseProperties(
            response_code=status, response_code_details=details, response_body_bytes=response_bytes
        ),
    )


def log_message(*entries: data.HttpAccessLogEntry) -> accesslog.StreamAccessLogsMessage:
    return accesslog.StreamAccessLogsMessage(
        http_logs=accesslog.StreamAccessLogsMessageHttpAccessLogEntries(log_entry=list(entries))
    )


def read(raw: bytes) -> Any:
    return ext_proc.ProcessingResponse.parse(raw)
