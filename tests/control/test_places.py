"""Does a tenant get its places, and no more, and are there some left for the others?"""

import contextlib

import pytest

from control.places import NoPlace, Places


def test_a_tenant_has_its_part_and_all_have_no_more_than_there_are() -> None:
    places = Places(most=3, most_of_each=2)
    with contextlib.ExitStack() as of_a, contextlib.ExitStack() as of_b:
        for _ in range(2):
            of_a.enter_context(places.taken_by("a"))
        with pytest.raises(NoPlace):
            of_a.enter_context(places.taken_by("a"))
        of_b.enter_context(places.taken_by("b"))
        with pytest.raises(NoPlace):
            of_b.enter_context(places.taken_by("b"))
        of_a.close()
        of_b.enter_context(places.taken_by("b"))
        of_a.enter_context(places.taken_by("a"))


def test_a_place_is_free_again_whatever_came_of_it() -> None:
    places = Places(most=1, most_of_each=1)
    for _ in range(2):
        with pytest.raises(LookupError), places.taken_by("a"):
            raise LookupError
