"""Logging in by an identity provider: OpenID Connect, the authorization code flow with PKCE, state and nonce.

Nothing is kept of a login that has begun: what it needs goes to the browser in a cookie that is signed with a
key of this process, so that strangers who begin logins fill nothing. State, nonce and PKCE's verifier are
made from that key as well: who has the cookie alone can't make them.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import OAuth2Client
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from penchant.common.network import is_loopback
from penchant.common.printable import is_printable, one_line
from penchant.server.console.at_once import HTTPError
from penchant.server.console.provider_settings import TrustedProvider, VouchedPerson

__all__ = ["LOGIN_SECONDS", "BegunLogin", "ProviderLogin"]

LOGIN_SECONDS = 600.0  # from the button to the way back
ASK_SECONDS = 10.0  # of the provider
FAILED_SECONDS = 5.0  # that it isn't asked again after it couldn't be reached
METADATA_SECONDS = 3600.0  # that what it says of itself is good for
KEYS_SECONDS = 60.0  # before its keys are asked for again because of a token that none of them signed
LEEWAY_SECONDS = 60  # that its clock may be off by
SUBJECT_MOST = 255  # characters: OpenID Connect Core 1.0, section 2
ADDRESS_MOST = 255  # characters
_ADDRESS = ("email", "email_verified")  # worth nothing but together, from one answer
USED_MOST = 10_000  # logins that are remembered as over
ALGORITHMS = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
    "Ed25519",
)
"""Of a signature that only the provider can make: none with a shared secret, and never "none"."""


@dataclass(frozen=True)
class BegunLogin:
    """What a login needs to end, as the browser carries it.

    Attributes:
        id: of this login.
        at: Unix seconds, when it began.
        after: the page that was asked for.
        device: the token of a browser that was let in before; the provider's answer comes without it.
    """

    id: str
    at: float
    after: str = "/"
    device: str = field(default="", repr=False)


class ProviderLogin:
    """Logins by one provider. Thread-safe."""

    def __init__(self, provider: TrustedProvider, clock: Callable[[], float] = time.time) -> None:
        """clock: Unix seconds."""
        self._provider = provider
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._metadata: tuple[float, dict[str, Any]] | None = None
        self._keys: tuple[float, KeySet] | None = None
        self._failed: tuple[float, str] | None = None
        self._used: OrderedDict[str, None] = OrderedDict()

    @property
    def provider(self) -> TrustedProvider:
        """Whom it asks."""
        return self._provider

    def begin(self, back: str, after: str, device: str = "") -> tuple[str, str]:
        """(the provider's page, what the browser must keep meanwhile). HTTPError 502 when it can't be asked.

        back: the address to which the provider sends the browser.
        """
        begun = BegunLogin(secrets.token_urlsafe(24), self._clock(), after, device)
        with self._client(back) as client:
            url, _ = client.create_authorization_url(
                self._told("authorization_endpoint"),
                state=self._made(begun, "state"),
                nonce=self._made(begun, "nonce"),
                code_verifier=self._made(begun, "verifier"),
            )
        return str(url), self._signed(begun)

    def begun(self, kept: str) -> BegunLogin | None:
        """The login of what the browser kept; None where it is none of ours, or took too long."""
        text, _, mac = kept.rpartition(".")
        if not hmac.compare_digest(mac.encode(), self._mac("cookie", text).encode()):
            return None
        found = BegunLogin(**json.loads(base64.urlsafe_b64decode(text)))
        return found if found.at <= self._clock() <= found.at + LOGIN_SECONDS else None

    def finish(self, begun: BegunLogin | None, answer: Mapping[str, str], back: str) -> VouchedPerson:
        """Whom the provider vouches for. HTTPError, in one line, for whatever is wrong on the way.

        Args:
            begun: of `begun`.
            answer: the parameters with which the provider sent the browser.
            back: as of `begin`.
        """
        if begun is None:
            raise HTTPError("This login took too long, or began elsewhere. Try once more.", status=403)
        if not hmac.compare_digest(answer.get("state", "").encode(), self._made(begun, "state").encode()):
            raise HTTPError("The answer is not to this login (wrong state). Try once more.", status=403)
        self._spend(begun)
        issuer = self._provider.settings.issuer
        if answer.get("iss", issuer if not self._says_issuer() else "") != issuer:
            raise HTTPError("The answer is of another provider (wrong issuer).", status=403)
        if "error" in answer:
            raise HTTPError(f"The provider refused: {one_line(answer['error'], 100)}.", status=403)
        token = self._token(answer.get("code", ""), self._made(begun, "verifier"), back)
        claims = self._claims(token, self._made(begun, "nonce"))
        return self._person(claims, str(token.get("access_token", "")))

    def end_session(self, back: str) -> str:
        """The provider's page for logging out there too; empty where it has none, or was not asked yet."""
        with self._lock:
            found = self._metadata[1].get("end_session_endpoint") if self._metadata else None
        if not isinstance(found, str) or not _fit(found):
            return ""
        asked = {"client_id": self._provider.settings.client_id, "post_logout_redirect_uri": back}
        return f"{found}{'&' if '?' in found else '?'}{urlencode(asked)}"

    # --- one login -----------------------------------------------------------------------------------

    def _spend(self, begun: BegunLogin) -> None:
        """A login ends once: an answer that is shown again finds nothing."""
        with self._lock:
            if begun.id in self._used:
                raise HTTPError("This answer was used already. Try once more.", status=403)
            self._used[begun.id] = None
            while len(self._used) > USED_MOST:
                self._used.popitem(last=False)

    def _token(self, code: str, verifier: str, back: str) -> Mapping[str, Any]:
        if not code:
            raise HTTPError("The provider sent no code.", status=403)
        endpoint = self._told("token_endpoint")
        with self._client(back) as client, self._reached():
            try:
                found = client.fetch_token(
                    endpoint, grant_type="authorization_code", code=code, code_verifier=verifier
                )
            except OAuthError as error:
                raise HTTPError(
                    f"The provider did not take its code back: {one_line(str(error.error), 100)}.", status=403
                ) from None
        if not isinstance(found.get("id_token"), str):
            raise HTTPError("The provider sent no identity token.", status=502)
        return dict(found)

    def _claims(self, token: Mapping[str, Any], nonce: str) -> Mapping[str, Any]:
        settings = self._provider.settings
        try:
            decoded = self._decoded(token["id_token"])
            claims = CodeIDToken(
                decoded.claims,
                decoded.header,
                {
                    "iss": {"essential": True, "value": settings.issuer},
                    "aud": {"essential": True, "value": settings.client_id},
                },
                {"nonce": nonce, "client_id": settings.client_id, "access_token": token.get("access_token")},
            )
            claims.validate(int(self._clock()), LEEWAY_SECONDS)
        except JoseError as error:
            why = one_line(f"{error.error} {getattr(error, 'claim', '') or ''}".strip(), 100)
            raise HTTPError(f"The provider’s identity token is not valid: {why}.", status=403) from None
        except (ValueError, TypeError, KeyError):
            raise HTTPError("The provider’s identity token can’t be read.", status=403) from None
        return dict(claims)

    def _decoded(self, token: str) -> jwt.Token:
        """With the keys that are known; with those of now where none of them fits."""
        try:
            return jwt.decode(token, self._key_set(METADATA_SECONDS), algorithms=list(ALGORITHMS))
        except JoseError:
            return jwt.decode(token, self._key_set(KEYS_SECONDS), algorithms=list(ALGORITHMS))

    def _person(self, claims: Mapping[str, Any], access: str) -> VouchedPerson:
        subject, wanted = claims["sub"], self._provider.settings.groups_claim
        if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_MOST or not is_printable(subject):
            raise HTTPError("The provider’s name for this person (sub) can’t be shown.", status=403)
        more: Mapping[str, Any] = {}
        endpoint = self._metadata_now().get("userinfo_endpoint")
        if access and isinstance(endpoint, str) and not {*_ADDRESS, wanted} <= set(claims):
            more = self._asked(endpoint, {"Authorization": f"Bearer {access}"})
            if more.get("sub") != subject:
                raise HTTPError("The provider speaks of two people in one answer.", status=403)
        groups = claims.get(wanted, more.get(wanted))
        return VouchedPerson(
            subject,
            _verified_address(claims if set(_ADDRESS) <= set(claims) else more),
            frozenset(one for one in groups if isinstance(one, str))
            if isinstance(groups, list)
            else frozenset(),
        )

    # --- what the browser carries --------------------------------------------------------------------

    def _mac(self, what: str, text: str) -> str:
        return hmac.digest(self._key, f"{what} {text}".encode(), "sha256").hex()

    def _made(self, begun: BegunLogin, what: str) -> str:
        """State, nonce or verifier of a login: 64 letters, as PKCE allows them."""
        return self._mac(what, begun.id)

    def _signed(self, begun: BegunLogin) -> str:
        text = base64.urlsafe_b64encode(json.dumps(asdict(begun)).encode()).decode()
        return f"{text}.{self._mac('cookie', text)}"

    # --- what the provider says of itself ------------------------------------------------------------

    def _metadata_now(self) -> dict[str, Any]:
        with self._lock:
            if self._metadata and self._clock() - self._metadata[0] < METADATA_SECONDS:
                return self._metadata[1]
        issuer = self._provider.settings.issuer
        found = self._asked(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if found.get("issuer") != issuer:
            raise HTTPError("The provider calls itself otherwise than oidc.issuer says.", status=502)
        with self._lock:
            self._metadata = self._clock(), found
        return found

    def _says_issuer(self) -> bool:
        """Whether its answers name it (RFC 9207)."""
        return self._metadata_now().get("authorization_response_iss_parameter_supported") is True

    def _told(self, key: str) -> str:
        found = self._metadata_now().get(key)
        if not isinstance(found, str) or not _fit(found):
            raise HTTPError(f"The provider has no {key} that can be used.", status=502)
        return found

    def _key_set(self, seconds: float) -> KeySet:
        """Its keys, as they were at most so many seconds ago."""
        with self._lock:
            if self._keys and self._clock() - self._keys[0] < seconds:
                return self._keys[1]
        found = KeySet.import_key_set(self._asked(self._told("jwks_uri")))  # type: ignore[arg-type]
        with self._lock:
            self._keys = self._clock(), found
        return found

    def _asked(self, url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        if not _fit(url):
            raise HTTPError("The provider names an address that is not https.", status=502)
        with self._reached(), httpx2.Client(**self._way()) as client:
            answer = client.get(url, headers=dict(headers or {}))
            if answer.status_code != httpx2.codes.OK:
                raise HTTPError(f"The provider answered with {answer.status_code}.", status=502)
            found = answer.json()
        if not isinstance(found, dict):
            raise HTTPError("The provider’s answer can’t be read.", status=502)
        return found

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """What goes wrong on the way to it, in one line, without what was sent. When it couldn't be reached,
        it is not asked again for a moment: nobody waits for what is known."""
        with self._lock:
            if self._failed and self._clock() < self._failed[0]:
                raise HTTPError(self._failed[1], status=502, retry_after=int(FAILED_SECONDS))
        try:
            yield
        except httpx2.HTTPError as error:
            why = f"The provider can’t be reached ({type(error).__name__})."
            with self._lock:
                self._failed = self._clock() + FAILED_SECONDS, why
            raise HTTPError(why, status=502, retry_after=int(FAILED_SECONDS)) from None
        except (ValueError, OSError):
            raise HTTPError("The provider’s answer can’t be read.", status=502) from None

    def _client(self, back: str) -> OAuth2Client:
        settings, secret = self._provider.settings, self._provider.secret
        return OAuth2Client(
            settings.client_id,
            secret or None,
            token_endpoint_auth_method=self._method() if secret else "none",
            scope=" ".join(settings.scopes),
            redirect_uri=back,
            code_challenge_method="S256",
            **self._way(),
        )

    def _method(self) -> str:
        """How the secret is shown: as OpenID Connect has it by default, unless the provider can't."""
        offered = self._metadata_now().get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        return "client_secret_basic" if "client_secret_basic" in offered else "client_secret_post"

    def _way(self) -> dict[str, Any]:
        """How it is reached: no redirect is followed, and no proxy of the environment asked."""
        way = {"timeout": ASK_SECONDS, "trust_env": False, "follow_redirects": False}
        return way | {"verify": self._provider.tls}


def _verified_address(said: Mapping[str, Any]) -> str:
    """The address that one answer both names and says to be verified; else empty."""
    email = said.get("email")
    fit = isinstance(email, str) and len(email) <= ADDRESS_MOST and is_printable(email)
    return str(email) if fit and said.get("email_verified") is True else ""


def _fit(url: str) -> bool:
    """Whether an address is https, or of this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
