"""A project's API keys and what each stands for.

Knows JWTs (HS256) and Supabase's rules for the headers that carry a key. Must not know HTTP connections.
"""

import base64
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

_TEN_YEARS = 10 * 365 * 24 * 3600


class Refused(Exception):
    """Supabase's gateway would answer 401; says what."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.body = {"message": message, "hint": hint}


@dataclass(frozen=True)
class ApiKeys:
    """The keys of one project; new ones each time, so that none is worth keeping secret for long."""

    jwt_secret: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    secret: str = field(default_factory=lambda: f"sb_secret_{secrets.token_urlsafe(24)}", repr=False)
    publishable: str = field(default_factory=lambda: f"sb_publishable_{secrets.token_urlsafe(24)}")

    @cached_property
    def service_jwt(self) -> str:
        return self.mint(role="service_role")

    @cached_property
    def anon_jwt(self) -> str:
        return self.mint(role="anon")

    def mint(self, *, seconds: int = _TEN_YEARS, **claims: str) -> str:
        now = int(time.time())
        payload = {"iss": "supabase", **claims, "iat": now, "exp": now + seconds}
        signed = f"{_part({'alg': 'HS256', 'typ': 'JWT'})}.{_part(payload)}"
        signature = hmac.digest(self.jwt_secret.encode(), signed.encode(), "sha256")
        return f"{signed}.{_text(signature)}"

    def jwt_for(self, user_id: str) -> str:
        """What a signed-in user's client sends."""
        return self.mint(role="authenticated", aud="authenticated", sub=user_id)

    def authorization(self, apikey: str | None, authorization: str | None, agent: str = "") -> str:
        """The Authorization header PostgREST gets for a request's `apikey` and `Authorization`."""
        if not apikey:
            raise Refused("No API key found in request", "No `apikey` request header was found.")
        if apikey in (self.service_jwt, self.anon_jwt):
            return authorization or f"Bearer {apikey}"
        minted = {self.secret: self.service_jwt, self.publishable: self.anon_jwt}.get(apikey)
        if minted is None:
            raise Refused("Invalid API key", "Double check your Supabase API key.")
        if apikey == self.secret and agent.startswith("Mozilla/"):
            raise Refused("Forbidden use of secret API key in browser", "Use a publishable key there.")
        bearer = (authorization or "").removeprefix("Bearer ")
        if bearer in ("", apikey):
            return f"Bearer {minted}"
        if bearer.count(".") != 2:
            raise Refused("Invalid API key", "Authorization holds neither a JWT nor the key in `apikey`.")
        return f"Bearer {bearer}"


def _part(claims: Mapping[str, object]) -> str:
    return _text(json.dumps(claims, separators=(",", ":")).encode())


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
