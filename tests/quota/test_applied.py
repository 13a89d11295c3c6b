"""Which limits hold for a request, and on whose counter each is counted."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.applied import AppliedLimit, AppliedLimits, Target, applied, counted_per
from quota.limit import Dimension, Limit, Mode, Unit
from tests.support.values import sliding, slots, tokens_a_day

ORGANIZATION, TENANT, PRINCIPAL, ROUTE, MODEL = Dimension
TARGET = Target(
    organization_id="org_a",
    tenant_id="ten_a",
    principal_id="key_k",
    route="/v1/chat/completions",
    model="gpt-5-mini",
    time_zone="Asia/Tokyo",
)


def _limit(ceiling: int = 10, **changes: Any) -> Limit:
    return msgspec.structs.replace(sliding(ceiling), **changes)


def _found(*carried: tuple[Dimension, list[Limit]]) -> list[tuple[str, int]]:
    return [(each.subject, each.limit.ceiling) for each in applied(carried, TARGET).limits]


@pytest.mark.parametrize(
    ("carrier", "subject"),
    [(ORGANIZATION, "organization:org_a"), (TENANT, "tenant:ten_a"), (PRINCIPAL, "principal:key_k")],
)
def test_a_limit_is_counted_for_who_carries_it(carrier: Dimension, subject: str) -> None:
    assert _found((carrier, [_limit()])) == [(subject, 10)]


@pytest.mark.parametrize(
    ("per", "subject"),
    [
        ((MODEL,), "tenant:ten_a,model:gpt-5-mini"),
        ((MODEL, ROUTE), "tenant:ten_a,route:/v1/chat/completions,model:gpt-5-mini"),
        ((PRINCIPAL,), "principal:key_k"),
        ((PRINCIPAL, TENANT), "tenant:ten_a,principal:key_k"),
        ((ORGANIZATION,), "organization:org_a"),
        ((MODEL, ORGANIZATION), "organization:org_a,model:gpt-5-mini"),
    ],
)
def test_a_limit_is_counted_apart_for_what_it_says(per: tuple[Dimension, ...], subject: str) -> None:
    assert _found((TENANT, [_limit(per=per)])) == [(subject, 10)]


@given(st.lists(st.sampled_from(list(Dimension))), st.sampled_from([ORGANIZATION, TENANT, PRINCIPAL]))
def test_dimensions_stand_from_the_widest_to_the_narrowest_with_an_owner_among_them(
    per: list[Dimension], carrier: Dimension
) -> None:
    found = counted_per(_limit(per=tuple(per)), carrier)
    assert sorted(found, key=list(Dimension).index) == list(found)
    assert set(per) <= set(found) <= {*per, carrier}
    assert set(found) & {ORGANIZATION, TENANT, PRINCIPAL}


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({"model": "gpt-5-mini"}, True),
        ({"model": "gpt-*"}, True),
        ({"model": "gpt-5"}, False),
        ({"route": "/v1/chat/completions"}, True),
        ({"route": "/v1/embeddings"}, False),
        ({"route": "/v1/chat/completions", "model": "claude-*"}, False),
    ],
)
def test_a_limit_for_a_route_or_model_holds_for_these_only(changes: dict[str, Any], *, holds: bool) -> None:
    assert bool(_found((TENANT, [_limit(**changes)]))) is holds


def test_what_says_more_holds_in_place_of_what_says_less_and_has_a_counter_of_its_own() -> None:
    general, for_route = _limit(1), _limit(2, route="/v1/chat/completions")
    for_model, other = _limit(3, model="gpt-*"), _limit(4, model="claude-*")
    both = _limit(5, route="/v1/chat/completions", model="gpt-*")
    on, of = "on /v1/chat/completions", "of gpt-*"
    assert _found((TENANT, [general, for_route])) == [(f"tenant:ten_a,{on}", 2)]
    assert _found((TENANT, [for_model, for_route, general])) == [(f"tenant:ten_a,{of}", 3)]
    assert _found((TENANT, [both, for_model, for_route])) == [(f"tenant:ten_a,{of},{on}", 5)]
    longer = _limit(6, model="gpt-5*")
    for order in ([longer, for_model], [for_model, longer]):
        assert _found((TENANT, order)) == [("tenant:ten_a,of gpt-5*", 6)]
    assert _found((TENANT, [general, other])) == [("tenant:ten_a", 1)]


def test_limits_of_all_owners_hold_together() -> None:
    found = applied([(ORGANIZATION, [_limit(3)]), (TENANT, [_limit(2), slots(1)]), (PRINCIPAL, [_limit(1)])], TARGET)
    assert [each.counter for each in found.limits] == [
        "organization:org_a/sliding",
        "tenant:ten_a/sliding",
        "tenant:ten_a/slots",
        "principal:key_k/sliding",
    ]


@pytest.mark.parametrize(
    ("one", "other", "kept"),
    [
        (_limit(5, per=(PRINCIPAL,)), _limit(9), 5),
        (_limit(9, per=(PRINCIPAL,)), _limit(5), 5),
        (_limit(5, per=(PRINCIPAL,), mode=Mode.SHADOW), _limit(9), 9),
        (_limit(5, per=(PRINCIPAL,)), _limit(5), 5),
    ],
)
def test_two_owners_limits_on_one_counter_are_counted_once_under_the_tighter(
    one: Limit, other: Limit, kept: int
) -> None:
    assert _found((TENANT, [one]), (PRINCIPAL, [other])) == [("principal:key_k", kept)]


def test_only_what_tenants_share_goes_by_utc() -> None:
    shared = [tokens_a_day(1), tokens_a_day(2, name="model")]
    shared[1] = msgspec.structs.replace(shared[1], per=(MODEL,))
    own = msgspec.structs.replace(tokens_a_day(3, name="each"), per=(TENANT,))
    key = msgspec.structs.replace(tokens_a_day(4, name="key"), per=(PRINCIPAL, ORGANIZATION))
    found = applied([(ORGANIZATION, [*shared, own, key])], TARGET)
    assert {each.limit.ceiling: found.zone_of(each) for each in found.limits} == {
        1: "UTC",
        2: "UTC",
        3: "Asia/Tokyo",
        4: "Asia/Tokyo",
    }


def test_limits_of_a_request_are_equal_only_to_themselves_and_one_limit_to_its_like() -> None:
    assert applied([], TARGET) != applied([], TARGET)
    assert hash(AppliedLimits(())) != hash(AppliedLimits((AppliedLimit(slots(1), "x"),)))
    assert AppliedLimit(slots(1), "x") == AppliedLimit(slots(1), "x")


@given(st.text(), st.text())
def test_no_model_name_reaches_the_counter_of_another_tenant(model: str, route: str) -> None:
    target = Target(organization_id="o", tenant_id="t", principal_id="p", route=route, model=model)
    limit = msgspec.structs.replace(sliding(1, unit=Unit.TOKENS), per=(MODEL,))
    [found] = applied([(TENANT, [limit])], target).limits
    assert found.counter == f"tenant:t,model:{model}/sliding"
