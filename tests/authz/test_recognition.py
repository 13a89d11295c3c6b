"""Which tokens are known again, and is any of them held?"""

from hypothesis import given
from hypothesis import strategies as st

from authz.principal import Handle, PrincipalKind
from authz.proof import Proof, Proofs
from authz.recognition import Recognised, Recognition
from tests.support.values import principal

FOUND = Recognised(
    b"h" * 32,
    Proofs(
        acting=Proof(
            principal=principal(), kind=PrincipalKind.API_KEY, handle=Handle(PrincipalKind.API_KEY, "7Kq2mWZp4TsB")
        )
    ),
)


def test_only_the_same_text_is_known_again() -> None:
    known = Recognition()
    known.remember("igw_right", FOUND)
    known.note("igs_session")
    assert known.find("igw_right") is FOUND
    assert (known.knows("igw_right"), known.knows("igs_session"), known.find("igs_session")) == (True, True, None)
    assert not known.knows("igw_righT")
    assert known.find("") is None


def test_it_is_bounded_and_lets_go_of_who_was_right_longest_ago() -> None:
    known = Recognition(capacity=2)
    for text in ("a", "b", "a", "c"):
        known.note(text)
    assert [known.knows(text) for text in "abc"] == [True, False, True]


def test_no_token_is_held() -> None:
    known = Recognition()
    known.remember("igw_right", FOUND)
    assert "igw_right" not in str(vars(known))
    assert b"h" * 32 not in repr(FOUND).encode()


@given(st.text())
def test_any_text_can_be_asked_for(text: str) -> None:
    assert Recognition().find(text) is None
