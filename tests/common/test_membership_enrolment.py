"""Requests and answers of an enrolment: signed by the key that they name, of the authority that was named."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.scene import authority, identity, membership

from penchant.common.crypto.domain import domain
from penchant.common.crypto.keys import verify
from penchant.common.errors import CertificateError
from penchant.common.membership.enrolment import Answer, NamedRequest, Request, request
from penchant.common.membership.identity import authority_digest


def test_a_request_is_signed_by_the_key_that_it_names() -> None:
    asked = request(bytes(range(32)))
    assert Request.decode(asked.encode()) == asked
    assert verify(asked.public_key, domain("request", asked.public_key), asked.signature)
    forged = replace(asked, public_key=identity(1).certificate.public_key)
    with pytest.raises(CertificateError, match="not signed by the key that it names"):
        Request.decode(forged.encode())
    with pytest.raises(CertificateError, match="not signed by the key that it names"):
        NamedRequest.decode(NamedRequest("Ada", forged).encode())


def test_requests_have_fingerprints_of_their_own() -> None:
    assert request(bytes(32)).fingerprint != request(bytes(range(32))).fingerprint


def test_an_answer_is_of_the_authority_that_was_named() -> None:
    answer = Answer(authority().public_key, identity(1).certificate, membership(3).encoded)
    named = authority_digest(authority().public_key)
    assert Answer.decode(answer.encode(), named) == answer
    with pytest.raises(CertificateError, match="a different authority"):
        Answer.decode(answer.encode(), bytes(32))
