"""What whoever operates the sidecar asks: is it alive, is it ready, what has it counted?"""

import httpx
import pytest

from control.operations import Probe, application


def _probe(answer: bool) -> Probe:  # noqa: FBT001 - it stands for its own answer
    async def probe() -> bool:
        return answer

    return probe


async def _get(path: str, **answers: bool) -> httpx.Response:
    app = application(
        {name: _probe(answer) for name, answer in answers.items()}, lambda: (b"metric 1\n", "text/plain; version=1")
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://sidecar") as client:
        return await client.get(path)


@pytest.mark.parametrize("answers", [{}, {"redis": False}])
async def test_alive_means_that_it_answers(answers: dict[str, bool]) -> None:
    found = await _get("/livez", **answers)
    assert (found.status_code, found.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("answers", "status"),
    [
        ({}, 200),
        ({"workers": True, "redis": True}, 200),
        ({"workers": True, "redis": False}, 503),
        ({"workers": False, "redis": True}, 503),
        ({"workers": False, "redis": False}, 503),
    ],
)
async def test_ready_means_that_every_probe_says_yes_and_each_is_shown(answers: dict[str, bool], status: int) -> None:
    found = await _get("/readyz", **answers)
    assert found.status_code == status
    assert found.json() == {"status": "ready" if status == 200 else "not ready", "checks": answers}
    assert found.headers["content-type"] == "application/json"


async def test_metrics_are_passed_on_with_their_type() -> None:
    found = await _get("/metrics")
    assert (found.status_code, found.content) == (200, b"metric 1\n")
    assert found.headers["content-type"].startswith("text/plain; version=1")


@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/usage"])
async def test_nothing_else_is_here(path: str) -> None:
    assert (await _get(path)).status_code == 404
