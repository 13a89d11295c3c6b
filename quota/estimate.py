"""How many tokens will a request come to, before a model has said so? Learned per model; no tokenizer.

The input is estimated from its bytes: bytes per token of a model are the mean over its settled requests. The answer is
taken to be as long as nine of ten answers of the model were: what is reserved for it bounds how far a token limit can
be passed, so most answers must stay below it, and a mean says nothing of the long tail that answers have.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

MILLI = 1000
# English prose comes to about four bytes a token with the common tokenizers; a JSON body is a little denser.
START_MILLIBYTES = 4 * MILLI
# What one request may say of its model. A body of pictures has thousands of bytes a token, one of odd signs less than
# one; both are real, and neither is to move what is reserved for others by more than this.
LEAST_MILLIBYTES, MOST_MILLIBYTES = 1 * MILLI, 16 * MILLI
# A request weighs as its bytes do, up to so many: one of a megabyte is no more typical than ten of a page.
MOST_BYTES = 16_384
# Of one tenant and model between two flushes: who sends a hundred times as much does not weigh a hundred times as much.
LESSONS_OF_A_TENANT = 4
# Fewer requests than this say nothing yet of a model.
FEWEST_LESSONS = 20
MODELS = 1000

_STEPS = 4  # buckets to each doubling of an answer's tokens: the estimate is at most a quarter too high
_FIRST_DOUBLING = 16
_DOUBLINGS = 13


def _bounds() -> tuple[int, ...]:
    within = (
        (_FIRST_DOUBLING << doubling) * (_STEPS + step) // _STEPS
        for doubling in range(_DOUBLINGS)
        for step in range(_STEPS)
    )
    return (*within, _FIRST_DOUBLING << _DOUBLINGS)


# The most tokens of an answer in each bucket: 16, 20, 24, 28, 32, 40, ... 131072. Longer ones count as the last.
BOUNDS = _bounds()


def bucket_of(output_tokens: int) -> int:
    """The index of an answer's bucket."""
    return min(bisect_left(BOUNDS, output_tokens), len(BOUNDS) - 1)


def tokens(size: int, millibytes: int = START_MILLIBYTES) -> int:
    """The estimate for `size` bytes of text at so many thousandths of a byte to a token; at least 1."""
    return max(1, -(-size * MILLI // millibytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What is known of a model: thousandths of a byte to a token of its input, and tokens of an answer.

    Either is None while too few requests have told it.
    """

    millibytes: int | None = None
    output_tokens: int | None = None


_UNKNOWN = Estimate()


class Estimates:
    """The estimates of all models, as they were last learned. `start` is thousandths of a byte to a token."""

    def __init__(self, start: int = START_MILLIBYTES) -> None:
        self._start = _clamped(start)
        self._known: dict[str, Estimate] = {}

    def input_tokens(self, model: str, size: int) -> int:
        """The estimate for a body of `size` bytes; at least 1."""
        return tokens(size, self._known.get(model, _UNKNOWN).millibytes or self._start)

    def output_tokens(self, model: str, default: int) -> int:
        """What nine of ten answers of the model stay within; `default` when that is not known."""
        known = self._known.get(model, _UNKNOWN).output_tokens
        return default if known is None else known

    def replace(self, known: Mapping[str, Estimate]) -> None:
        """Go by these from now on: at most `MODELS` of them, each within the bounds of what one request may say."""
        kept = list(known.items())[:MODELS]
        self._known = {model: _bounded(estimate) for model, estimate in kept}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A completed request whose usage the Router has told.

    `output_tokens` is None when its answer says nothing of others: it had none, or was cut off at the caller's maximum.
    """

    model: str
    tenant_id: str
    input_bytes: int
    input_tokens: int
    output_tokens: int | None


@dataclass(slots=True)
class Delta:
    """What was learned of a model since the last flush: sums of the input, and answers by bucket."""

    lessons: int = 0
    bytes: int = 0
    millitokens: int = 0
    answers: dict[int, int] = field(default_factory=dict)


class Learner:
    """Collects lessons between two flushes, in bounded memory."""

    def __init__(self) -> None:
        self._deltas: dict[str, Delta] = {}
        self._heard: dict[tuple[str, str], int] = {}

    def learn(self, lesson: Lesson) -> None:
        """Take one lesson in, unless its tenant has given enough of them, or there are too many models."""
        heard = self._heard.get((lesson.model, lesson.tenant_id), 0)
        if heard >= LESSONS_OF_A_TENANT or not lesson.model:
            return
        if lesson.model not in self._deltas and len(self._deltas) >= MODELS:
            return
        self._heard[lesson.model, lesson.tenant_id] = heard + 1
        _add(self._deltas.setdefault(lesson.model, Delta()), lesson)

    def take(self) -> dict[str, Delta]:
        """What was learned since the last call, by model."""
        deltas, self._deltas = self._deltas, {}
        self._heard.clear()
        return deltas


def _add(delta: Delta, lesson: Lesson) -> None:
    if lesson.input_bytes > 0 and lesson.input_tokens > 0:
        weight = min(lesson.input_bytes, MOST_BYTES)
        delta.lessons += 1
        delta.bytes += weight
        delta.millitokens += weight * MILLI * MILLI // _clamped(lesson.input_bytes * MILLI // lesson.input_tokens)
    if lesson.output_tokens is not None and lesson.output_tokens > 0:
        bucket = bucket_of(lesson.output_tokens)
        delta.answers[bucket] = delta.answers.get(bucket, 0) + 1


def _clamped(millibytes: int) -> int:
    return min(max(millibytes, LEAST_MILLIBYTES), MOST_MILLIBYTES)


def _bounded(estimate: Estimate) -> Estimate:
    output = estimate.output_tokens
    return Estimate(
        millibytes=None if estimate.millibytes is None else _clamped(estimate.millibytes),
        output_tokens=None if output is None else min(max(output, 1), BOUNDS[-1]),
    )
