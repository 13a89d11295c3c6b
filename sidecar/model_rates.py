"""What does a worker know of the models' rates? A card read from Postgres and kept fresh; the last one goes on."""

from quota.rate_card import ModelRates, RateCard
from sidecar.logs import Logger
from sidecar.refresher import Refresher
from store import model_rates
from store.database import Pool

TABLE = "model_rates"


class KnownRates:
    """The rates as they were last read; the default ones until then."""

    def __init__(self, pool: Pool, *, logger: Logger) -> None:
        self._pool = pool
        self._card = RateCard()
        self.refresher = Refresher(TABLE, self._read, logger=logger)

    def of(self, model: str) -> ModelRates:
        """The rates of a model."""
        return self._card.of(model)

    async def _read(self) -> None:
        self._card = await model_rates.load(self._pool)
