"""What Flower's own SuperNode says of itself with every request."""

from __future__ import annotations

import httpx
from cryptography.hazmat.primitives.asymmetric import ec

from penchant.deploy.fleet import node_gate


def signed(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """The headers that Flower's own SuperNode sends with every request."""
    from flwr.supercore.protobuf.client import ProtobufRequestContext
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    request = httpx.Request("POST", "https://server/v1/fleet/push-object")
    context = ProtobufRequestContext("", None, request)  # type: ignore[arg-type]
    NodeAuthHttpInterceptor(key, key.public_key()).intercept(context, lambda _: httpx.Response(200))
    names = node_gate.KEY_HEADER, node_gate.TIME_HEADER, node_gate.SIGNATURE_HEADER
    return {name: request.headers[name] for name in names}


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Its public key, as the SuperLink knows it."""
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    return public_key_to_bytes(key.public_key())
