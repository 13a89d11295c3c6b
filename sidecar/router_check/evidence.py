"""What was asked of a Router in one dialect, and what did it answer?"""

from dataclasses import dataclass

from sidecar.router_check.answer import Answer
from sidecar.router_check.spoken import Spoken


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The answers to a plain request, to one with fields that nobody knows, to a wrong one, and to one for a stream.

    The latter three are None where there was nothing at the path. `request_id` is that of the plain request.
    """

    spoken: Spoken
    request_id: str
    plain: Answer
    extended: Answer | None = None
    wrong: Answer | None = None
    stream: Answer | None = None
