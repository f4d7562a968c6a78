"""Who may send the SuperLink anything: enrolled nodes, by Flower's own headers, signed just now."""

from __future__ import annotations

import time
from base64 import b64encode

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.node_headers import pem, signed

from penchant.common.network import network_of
from penchant.deploy.fleet import node_gate
from penchant.deploy.fleet.node_gate import NodeProof, admits

KEY = ec.generate_private_key(ec.SECP384R1())
STRANGER = ec.generate_private_key(ec.SECP384R1())


def proof(headers: dict[str, str]) -> NodeProof:
    return NodeProof(*([value] for value in headers.values()))


def known(key: bytes) -> bool:
    return key == pem(KEY)


def test_flowers_own_supernode_passes_and_a_stranger_does_not() -> None:
    assert admits(proof(signed(KEY)), known)
    assert not admits(proof(signed(STRANGER)), known)
    borrowed = signed(STRANGER) | {node_gate.KEY_HEADER: b64encode(pem(KEY)).decode()}
    assert not admits(proof(borrowed), known)


@pytest.mark.parametrize(("later", "passes"), [(-6, False), (-4, True), (300, True), (306, False)])
def test_a_signature_is_good_for_as_long_as_the_superlink_takes_it(later: float, passes: bool) -> None:
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    assert (node_gate.BEHIND_SECONDS, node_gate.AHEAD_SECONDS) == (
        TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE,
        SYSTEM_TIME_TOLERANCE,
    )
    assert admits(proof(signed(KEY)), known, lambda: time.time() + later) is passes


def test_odd_headers_are_refused() -> None:
    good = proof(signed(KEY))
    naive = good.time[0].split("+")[0]
    times = (naive, "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59")
    values = ([], ["x"], [""], ["é"], ["A" * 9999])
    odd = [good._replace(**{name: value}) for name in good._fields for value in values]
    odd += [good._replace(**{name: getattr(good, name) * 2}) for name in good._fields]
    odd += [good._replace(time=[text]) for text in times]
    assert [admits(one, known) for one in odd] == [False] * len(odd)


def test_an_unknown_key_costs_no_signature_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_gate, "_signed", lambda *_: pytest.fail("it was verified"))
    assert not admits(proof(signed(STRANGER)), known)


def test_of_ipv6_a_network_is_a_stranger() -> None:
    assert network_of("2001:db8:1:2::1") == network_of("2001:db8:1:2:ffff::9") == "2001:db8:1:2::/64"
    assert network_of("2001:db8:1:3::1") != network_of("2001:db8:1:2::1")
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("testclient") == "testclient"
