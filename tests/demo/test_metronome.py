import asyncio

from demo.metronome import Metronome


async def test_nobody_rests_for_less_than_asked() -> None:
    loop = asyncio.get_running_loop()
    metronome = Metronome(loop)

    async def rested(seconds: float) -> float:
        start = loop.time()
        await metronome.rest(seconds)
        return loop.time() - start

    asked = [0.0, 0.001, 0.0015, 0.01]
    found = await asyncio.gather(*map(rested, asked))
    assert all(one >= wanted - 1e-6 for one, wanted in zip(found, asked, strict=True))


async def test_one_who_left_does_not_disturb_the_others() -> None:
    metronome = Metronome(asyncio.get_running_loop())
    staying, leaving = (asyncio.ensure_future(metronome.rest(0.01)) for _ in range(2))
    await metronome.rest(0)
    leaving.cancel()
    await asyncio.gather(staying, leaving, return_exceptions=True)
    assert leaving.cancelled()
    assert not staying.cancelled()
