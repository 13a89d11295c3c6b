"""Which of Envoy's messages do we speak?

Each name is a protobuf (upb) class built from the betterproto dataclass of the same name; see `wire.schema`.
"""

from typing import Any

import betterproto2
from envoy_data_plane.envoy.service.accesslog import v3 as accesslog
from envoy_data_plane.envoy.service.auth import v3 as auth
from envoy_data_plane.envoy.service.ext_proc import v3 as ext_proc

from wire.schema import build_classes

ROOTS: tuple[type[betterproto2.Message], ...] = (
    auth.CheckRequest,
    auth.CheckResponse,
    ext_proc.ProcessingRequest,
    ext_proc.ProcessingResponse,
    accesslog.StreamAccessLogsMessage,
    accesslog.StreamAccessLogsResponse,
)
CLASSES = build_classes(ROOTS)

# The classes exist only at run time, so their fields are Any to the type checker.
CheckRequest: Any = CLASSES[auth.CheckRequest]
CheckResponse: Any = CLASSES[auth.CheckResponse]
ProcessingRequest: Any = CLASSES[ext_proc.ProcessingRequest]
ProcessingResponse: Any = CLASSES[ext_proc.ProcessingResponse]
StreamAccessLogsMessage: Any = CLASSES[accesslog.StreamAccessLogsMessage]
StreamAccessLogsResponse: Any = CLASSES[accesslog.StreamAccessLogsResponse]
