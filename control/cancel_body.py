"""What is a caller told of the request it has cancelled? The shapes that are written and documented."""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field, computed_field

from control.request_body import RequestStatus
from store.requests import RequestLife

_MS_PER_SECOND = 1000


class CancelledRequest(RequestStatus):
    """A request that was cancelled, or is about to be."""

    @computed_field(description="Whether it still runs, and will be ended.")  # type: ignore[prop-decorator]
    @property
    def cancelling(self) -> bool:
        """Whether it still runs."""
        return self.cause is None


class ResponseUsage(BaseModel):
    """OpenAI's `ResponseUsage`."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class CancelledResponse(BaseModel):
    """OpenAI's `Response`, with all that it must have; the gateway keeps no output."""

    id: str
    object: Literal["response"] = "response"
    created_at: float = Field(description="Seconds since the epoch.")
    status: Literal["cancelled", "in_progress"]
    model: str
    output: list[Any] = []
    error: None = None
    incomplete_details: None = None
    instructions: None = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = True
    tool_choice: Literal["auto"] = "auto"
    tools: list[Any] = []
    temperature: float | None = None
    top_p: float | None = None
    usage: ResponseUsage | None

    @classmethod
    def of(cls, life: RequestLife, response_id: str) -> Self:
        """Show a request, by the id that the caller used."""
        return cls(
            id=response_id,
            created_at=life.admission.received_ms / _MS_PER_SECOND,
            status="in_progress" if life.ending is None else "cancelled",
            model=life.admission.model,
            usage=_usage(life),
        )


def _usage(life: RequestLife) -> ResponseUsage | None:
    ending = life.ending
    if ending is None:
        return None
    return ResponseUsage(
        input_tokens=ending.input_tokens,
        input_tokens_details={"cached_tokens": ending.cached_tokens},
        output_tokens=ending.output_tokens,
        output_tokens_details={"reasoning_tokens": ending.reasoning_tokens},
        total_tokens=ending.input_tokens + ending.output_tokens,
    )
