"""What does a token of this model weigh and cost, and how long is an answer when nobody says? By model pattern."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from quota.charges import Rates
from quota.model_pattern import matches, particularity

# Reserved for the answer when neither the caller names a maximum nor a model has one. Never the model's own maximum:
# one request would eat a day's limit.
DEFAULT_OUTPUT_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRates:
    """The rates of all models of a pattern. `output_tokens` is what an answer is first taken to be, before any came."""

    pattern: str
    rates: Rates
    output_tokens: int = DEFAULT_OUTPUT_TOKENS


_UNNAMED = ModelRates(pattern="*", rates=Rates())


class RateCard:
    """The rates of all models. Of several patterns for one model the longest counts; its whole name before `name*`."""

    def __init__(self, models: Iterable[ModelRates] = ()) -> None:
        self._models = sorted(models, key=lambda each: particularity(each.pattern), reverse=True)
        self.of = lru_cache(maxsize=10_000)(self._of)

    def _of(self, model: str) -> ModelRates:
        """The rates of a model; the default ones for a model that no pattern stands for."""
        return next((each for each in self._models if matches(each.pattern, model)), _UNNAMED)
