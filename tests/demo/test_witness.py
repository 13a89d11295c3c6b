from demo.witness import MAX_BODY, End, Witness


async def test_the_oldest_sightings_are_dropped() -> None:
    witness = Witness(lambda: 1.0, keep=2)
    for request_id in ("a", "b", "c"):
        witness.begin(request_id, "POST", "/", ())
    assert witness.seen("a") is None
    assert witness.seen("c") is not None
    assert witness.totals()["live"] == 3


async def test_bodies_are_bounded_one_by_one_and_together() -> None:
    witness = Witness(lambda: 1.0, held_bytes=MAX_BODY + 1)
    for request_id in ("a", "b"):
        sighting = witness.begin(request_id, "POST", "/", ())
        witness.took_body(request_id, sighting, b"x" * (MAX_BODY + 5))
    assert witness.seen("a") is None
    seen = witness.seen("b")
    assert seen is not None
    assert (len(seen["body"]), seen["body_bytes"]) == (MAX_BODY, MAX_BODY + 5)


async def test_another_attempt_takes_the_place_of_the_first() -> None:
    witness = Witness(lambda: 1.0)
    witness.begin("a", "POST", "/one", ())
    witness.begin("a", "POST", "/two", ())
    seen = witness.seen("a")
    assert seen is not None
    assert (seen["path"], seen["attempt"]) == ("/two", 2)


async def test_the_first_end_is_the_true_one() -> None:
    witness = Witness(lambda: 1.0)
    sighting = witness.begin("a", "POST", "/", ())
    witness.ended(sighting, End.FAULT)
    witness.ended(sighting, End.CLIENT_CLOSED)
    assert not witness.cancel("a")
    totals = witness.totals()
    assert (totals["faults"], totals["client_closed"], totals["live"]) == (1, 0, 0)
