"""Join tokens: what is no token, what was damaged, when one ends, and what its signature is over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penchant.common.errors import TokenError
from penchant.common.membership.enrolment import MAX_NODE_KEY, request
from penchant.common.membership.join_token import MAX_TOKEN, PREFIX, JoinToken, Terms, check_signature

END = 1_000


def token(address: str = "host:1") -> JoinToken:
    return JoinToken(Terms(address, bytes(32), bytes(range(32)), END), bytes(range(32)))


def test_a_token_comes_back_whole() -> None:
    assert JoinToken.read(token().text(), END - 1) == token()
    assert JoinToken.read(f" {token().text()[:30]}\n{token().text()[30:]} ", END - 1) == token()


def test_a_token_ends_at_its_date_and_not_later() -> None:
    with pytest.raises(TokenError, match="past its date"):
        JoinToken.read(token().text(), END)


@pytest.mark.parametrize("text", ["", "penchant2_abc", token().text()[1:], PREFIX + "A" * MAX_TOKEN])
def test_what_is_no_token_is_called_so(text: str) -> None:
    with pytest.raises(TokenError, match="not a join token"):
        JoinToken.read(text, 0)


def test_the_longest_text_that_may_be_one_is_read() -> None:
    with pytest.raises(TokenError, match="is damaged"):
        JoinToken.read(PREFIX + "A" * (MAX_TOKEN - len(PREFIX)), 0)


def test_every_slip_of_the_pen_is_noticed() -> None:
    text = token().text()
    for at in range(len(PREFIX), len(text)):
        wrong = text[:at] + ("B" if text[at] != "B" else "C") + text[at + 1 :]
        with pytest.raises(TokenError, match="is damaged"):
            JoinToken.read(wrong, 0)


@pytest.mark.parametrize("address", ["host:1", "host:12", "host:123"])
def test_a_token_has_one_spelling(address: str) -> None:
    """Base64 lets the same bytes be written with padding as well."""
    for more in ("=", "==", "==="):
        with pytest.raises(TokenError, match="is damaged"):
            JoinToken.read(token(address).text() + more, 0)


def test_a_node_key_that_is_too_long_is_not_signed() -> None:
    asked = request(bytes(range(32)))
    longest = token().sign(asked, bytes(MAX_NODE_KEY))
    check_signature(token().terms, longest)
    with pytest.raises(TokenError, match="too long"):
        token().sign(asked, bytes(MAX_NODE_KEY + 1))


def test_the_signature_is_over_terms_request_and_node_key() -> None:
    signed = token().sign(request(bytes(range(32))), b"node key")
    check_signature(token().terms, signed)
    for other in (
        replace(signed, asked=request(bytes(32))),
        replace(signed, node_key=b"other key"),
        replace(signed, token=replace(token(), private=bytes(32)).public_key),
    ):
        with pytest.raises(TokenError, match="not signed with the token"):
            check_signature(token().terms, other)
    for change in (
        {"address": "host:2"},
        {"ca": b"\x01" * 32},
        {"authority": bytes(32)},
        {"expires": END + 1},
    ):
        with pytest.raises(TokenError, match="not signed with the token"):
            check_signature(replace(token().terms, **change), signed)  # type: ignore[arg-type]


def test_tokens_have_names_of_their_own() -> None:
    assert token().name != JoinToken.create(token().terms).name
