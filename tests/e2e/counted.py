"""What has a running gateway counted? Its Prometheus page, read for one sample."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.gateway import Gateway


async def counted(gateway: Gateway, sample: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels; 0 when there are none."""
    async with httpx.AsyncClient() as client:
        page = (await client.get(f"{gateway.ops_url}/metrics")).text
    return sum(
        one.value
        for family in text_string_to_metric_families(page)
        for one in family.samples
        if one.name == sample and labels.items() <= one.labels.items()
    )
