"""What does a log line look like? structlog, for people on a terminal or as JSON for machines.

Every line has an `action`, the machine's name of what happened.
"""

import sys
from typing import Literal

import structlog

Logger = structlog.stdlib.BoundLogger


def configure(log_format: Literal["console", "json"], *, process: str) -> Logger:
    """Set up logging for this process and return its logger. Lines go to standard output, for the platform to keep."""
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if log_format == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), pad_event_to=0)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(),
        cache_logger_on_first_use=True,
    )
    logger: Logger = structlog.get_logger().bind(process=process)
    return logger
