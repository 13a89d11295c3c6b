"""Which limits can hold for requests of which only some is said, and which of them have one counter."""

from typing import Any

import msgspec

from quota.applied import Target
from quota.limit import Dimension, Limit, requests_per_minute, tokens_per_day
from quota.overview import counted, matched, overview
from quota.reservation import Standing

CHAT = "/v1/chat/completions"


def target(**changes: str) -> Target:
    """The requests of one key; route and model are not said."""
    whole = {"organization_id": "org_a", "tenant_id": "ten_a", "principal_id": "key_k", "route": "", "model": ""}
    return Target(**whole | changes, time_zone="Asia/Tokyo")


def limit(ceiling: int = 10, **changes: Any) -> Limit:
    return msgspec.structs.replace(requests_per_minute(ceiling), **changes)


def of_tenant(*limits: Limit, **said: str) -> list[tuple[Limit, tuple[Dimension, ...]]]:
    """What can hold, each with what is missing."""
    return [(each.limit, each.missing) for each in overview([(Dimension.TENANT, limits)], target(**said))]


def test_what_is_for_all_requests_has_a_counter() -> None:
    assert of_tenant(limit()) == [(limit(), ())]


def test_what_is_counted_apart_has_one_when_it_is_said_which() -> None:
    both = limit(per=(Dimension.ROUTE, Dimension.MODEL))
    assert of_tenant(both) == [(both, (Dimension.ROUTE, Dimension.MODEL))]
    assert of_tenant(both, route=CHAT) == [(both, (Dimension.MODEL,))]
    assert of_tenant(both, route=CHAT, model="m") == [(both, ())]
    of_each = limit(per=(Dimension.PRINCIPAL,))
    assert of_tenant(of_each, principal_id="") == [(of_each, (Dimension.PRINCIPAL,))]


def test_what_is_for_one_route_or_model_says_so_itself() -> None:
    alone = limit(route=CHAT, model="gpt-5", per=(Dimension.ROUTE, Dimension.MODEL))
    assert of_tenant(alone) == [(alone, ())]
    together = limit(model="gpt-*")
    assert of_tenant(together) == [(together, ())]
    each = limit(model="gpt-*", per=(Dimension.MODEL,))
    assert of_tenant(each) == [(each, (Dimension.MODEL,))]


def test_in_place_of_the_general_stands_the_particular_where_it_holds() -> None:
    general, particular = limit(10), limit(5, model="gpt-*")
    assert of_tenant(general, particular) == [(general, ()), (particular, ())]
    assert of_tenant(general, particular, model="gpt-5") == [(particular, ())]
    assert of_tenant(general, particular, model="other") == [(general, ())]
    assert of_tenant(general, limit(7, model="*")) == [(limit(7, model="*"), ())], "the general one never holds"


def test_of_two_owners_limits_on_one_counter_the_tighter_is_shown_once() -> None:
    carried = [
        (Dimension.TENANT, (limit(10, per=(Dimension.PRINCIPAL,)),)),
        (Dimension.PRINCIPAL, (limit(4),)),
    ]
    [found] = overview(carried, target())
    assert (found.limit.ceiling, found.carrier) == (4, Dimension.PRINCIPAL)
    [same] = overview([(Dimension.PRINCIPAL, (limit(4),)), carried[1]], target())
    assert same.limit == limit(4)


def test_days_are_the_tenants_unless_tenants_share_them() -> None:
    carried = [(Dimension.ORGANIZATION, (tokens_per_day(1),)), (Dimension.TENANT, (tokens_per_day(1),))]
    assert [each.time_zone for each in overview(carried, target())] == ["UTC", "Asia/Tokyo"]


def test_standings_come_back_to_their_limits() -> None:
    found = overview([(Dimension.TENANT, (limit(per=(Dimension.MODEL,)), tokens_per_day(1)))], target())
    limits = counted(found, "Asia/Tokyo")
    stood = Standing(used=1, reserved=0, reset_ms=5)
    assert [each.limit for each in limits.limits] == [tokens_per_day(1)]
    assert [standing for _, standing in matched(found, limits, [stood])] == [None, stood]
