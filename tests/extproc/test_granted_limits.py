"""Which limits a Grant puts on a request: chosen once, handed out as the same object, in bounded memory."""

import msgspec
import pytest

from authz import grant as grants
from authz.grant import Grant
from extproc import granted_limits
from extproc.granted_limits import carried, limits_of
from quota.limit import Dimension, Limit
from tests.support.values import grant, sliding, slots, tokens_a_day

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"


def _changed(limit: Limit, **changes: object) -> Limit:
    return msgspec.structs.replace(limit, **changes)


def _text(one: Grant) -> str:
    # A text of its own each time, as it comes from Envoy.
    return grants.encode(one)


def _counters(one: Grant, path: str = CHAT, model: str = "demo") -> list[str]:
    return [applied.counter for applied in limits_of(_text(one), path, model).limits]


def test_all_that_carry_limits_are_asked_from_the_widest_to_the_narrowest() -> None:
    one = grant(sliding(9), organization_limits=(tokens_a_day(5),), principal_limits=(slots(2),))
    assert _counters(one) == ["organization:org_a/tokens", "tenant:ten_a/sliding", "principal:key_k/slots"]
    assert [carrier for carrier, _ in carried(one)] == [
        Dimension.ORGANIZATION,
        Dimension.TENANT,
        Dimension.PRINCIPAL,
    ]


def test_calendars_go_by_the_tenants_time_zone() -> None:
    one = grant(tokens_a_day(5), time_zone="Asia/Tokyo")
    assert limits_of(_text(one), CHAT, "demo").time_zone == "Asia/Tokyo"


def test_without_limits_there_are_none() -> None:
    assert limits_of(_text(grant()), CHAT, "demo").limits == ()


def test_the_same_grant_path_and_model_give_the_same_object() -> None:
    one = grant(sliding(9, name="same"))
    first, again = _text(one), _text(one)
    assert first is not again
    assert limits_of(first, CHAT, "demo") is limits_of(again, CHAT, "demo")
    assert limits_of(first, CHAT, "demo") is not limits_of(first, EMBEDDINGS, "demo")


def test_models_that_no_limit_asks_for_share_what_is_remembered() -> None:
    text = _text(grant(sliding(9, name="shared")))
    assert len({id(limits_of(text, CHAT, f"model-{number}")) for number in range(50)}) == 1


@pytest.mark.parametrize("changes", [{"model": "gpt-*"}, {"per": (Dimension.MODEL,)}])
@pytest.mark.parametrize("carrier", ["limits", "principal_limits", "organization_limits"])
def test_models_are_told_apart_when_a_limit_asks_for_them(changes: dict[str, object], carrier: str) -> None:
    one = grant(**{carrier: (_changed(sliding(9, name="of_model"), **changes),)})
    of_gpt, of_other = _counters(one, model="gpt-5"), _counters(one, model="other")
    assert of_gpt != of_other
    assert limits_of(_text(one), CHAT, "gpt-5") is limits_of(_text(one), CHAT, "gpt-5")


def test_a_limit_of_a_path_holds_there() -> None:
    one = grant(_changed(sliding(9), route=EMBEDDINGS))
    assert (_counters(one, CHAT), len(_counters(one, EMBEDDINGS))) == ([], 1)


def test_what_is_remembered_is_bounded_whatever_models_callers_make_up() -> None:
    bound = granted_limits._select.cache_info().maxsize
    assert bound is not None
    text = _text(grant(_changed(sliding(9), per=(Dimension.MODEL,))))
    for number in range(bound + 100):
        limits_of(text, CHAT, f"made-up-{number}")
    assert granted_limits._select.cache_info().currsize == bound
