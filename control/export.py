"""In which formats can data be taken out, and how is each written? A piece at a time, however much it is."""

import csv
import io
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from enum import StrEnum
from typing import TypeVar

from starlette.responses import StreamingResponse

T = TypeVar("T")
# A spreadsheet takes a cell that begins so for a formula, and runs it (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_LEAST_QUALITY = 0.0


class Format(StrEnum):
    """How data are written."""

    JSON = "json"
    CSV = "csv"
    JSONL = "jsonl"
    CLOUDEVENTS = "cloudevents"


MEDIA_TYPES = {
    Format.JSON: "application/json",
    Format.CSV: "text/csv",  # RFC 4180
    Format.JSONL: "application/jsonl",  # https://jsonlines.org
    # https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md#4-json-batch-format
    Format.CLOUDEVENTS: "application/cloudevents-batch+json",
}
_FORMATS = {media_type: format_ for format_, media_type in MEDIA_TYPES.items()} | {
    "application/x-ndjson": Format.JSONL,
    "application/ndjson": Format.JSONL,
}


def accepted(accept: str, offered: Iterable[Format]) -> Format:
    """The format that an `accept` header (RFC 9110 section 12.5.1) likes best; JSON when it names none of those."""
    known = set(offered)
    best, best_quality = Format.JSON, _LEAST_QUALITY
    for media_range in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in media_range.split(";"))
        found = _FORMATS.get(media_type)
        quality = _quality(parameters)
        if found in known and found is not None and quality > best_quality:
            best, best_quality = found, quality
    return best


def _quality(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "q":
            try:
                return float(value)
            except ValueError:
                return _LEAST_QUALITY
    return 1.0


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows of a table, for a program or a spreadsheet: a text that would be a formula gets an apostrophe before it."""
    text = io.StringIO()
    csv.writer(text).writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    match value:
        case bool():
            return "true" if value else "false"
        case str() if value.startswith(_FORMULA):
            return f"'{value}"
        case _:
            return value


async def csv_pieces(
    columns: Sequence[str], batches: AsyncIterable[list[T]], row: Callable[[T], Sequence[object]]
) -> AsyncGenerator[str, None]:
    """A table: a row of names, and a row for each."""
    yield csv_text([columns])
    async for batch in batches:
        yield csv_text(map(row, batch))


async def line_pieces(batches: AsyncIterable[list[T]], line: Callable[[T], str]) -> AsyncGenerator[str, None]:
    """JSON lines."""
    async for batch in batches:
        yield "".join(f"{line(each)}\n" for each in batch)


async def array_pieces(batches: AsyncIterable[list[T]], item: Callable[[T], str]) -> AsyncGenerator[str, None]:
    """A JSON array, an item a line. One that was broken off is not JSON."""
    opening = "["
    async for batch in batches:
        if batch:
            yield opening + ",\n".join(map(item, batch))
            opening = ",\n"
    yield "]\n" if opening != "[" else "[]\n"


async def begun(batches: AsyncIterator[list[T]]) -> AsyncIterator[list[T]]:
    """The same, with the first batch at hand: what fails at once fails before an answer has begun."""
    first: list[T] = await anext(batches, [])

    async def all_batches() -> AsyncIterator[list[T]]:
        yield first
        async for batch in batches:
            yield batch

    return all_batches()


def download(pieces: AsyncIterable[str], format_: Format, *, name: str) -> StreamingResponse:
    """The answer that a browser saves under this name, as it comes."""
    ending = "json" if format_ is Format.CLOUDEVENTS else format_.value
    headers = {"content-disposition": f'attachment; filename="{name}.{ending}"', "cache-control": "no-store"}
    media_type = MEDIA_TYPES[format_]
    charset = "; charset=utf-8" if format_ is Format.CSV else ""
    return StreamingResponse(pieces, media_type=f"{media_type}{charset}", headers=headers)
