"""The Data API's way to the door.

Knows HTTP and how it fails. Knows neither the door's documents nor its answers. The only module that imports
supabase. A request is never repeated here.
"""

import asyncio
import json
import re
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx

from daemon.connection import SOCKET_OPTIONS
from daemon.errors import LONGEST_PAUSE, Kind, Refusal, TargetError, rule_for
from daemon.exchange import BROKEN, UNCONNECTED, Exchange, Unwanted
from daemon.failpoint import EXTENSIONS
from daemon.refusal_words import denial_of, hint_of

# The longest answer is a description of every table; what is longer is none of outboxd's.
LONGEST_ANSWER = 16 * 1024**2
_LONGEST_REFUSAL = 64 * 1024  # it may quote rows; what is longer is judged by its status alone
_LONGEST_TIME = 64  # characters


class RestDoor:
    """The Data API, with what the supabase client sends to it.

    The body is text/plain to a function with one unnamed text parameter: PostgREST hands it on unparsed.
    `trust`: certificates to trust instead of the public authorities'.
    """

    def __init__(
        self, url: str, key: str, *, exposed_schema: str = "public", deadline: float = 20.0, user_agent: str = "outboxd",
        trust: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        self._url = url.rstrip("/")
        self._key = key
        self._schema = exposed_schema
        self._deadline = deadline
        self._agent = user_agent
        self._trust = trust
        import supabase  # here, because it costs most of a second and 70 MB, and the other door does without

        self._supabase = supabase
        self._exchange: Exchange | None = None

    @property
    def place(self) -> str:
        """The address of the project, without anything secret."""
        return urlsplit(self._url).netloc.rpartition("@")[2]

    async def send(self, document: bytes) -> str:
        """POST the document; the body of a 200 is the answer."""
        try:
            # httpx' own timeouts are per chunk: a body that drips would never end.
            async with asyncio.timeout(self._deadline):
                exchange = self._exchange or await self._opened()
                status, headers, body = await exchange.post(document)
        except TimeoutError:
            raise TargetError(Kind.AMBIGUOUS, f"the target did not answer within {self._deadline:g} s") from None
        except UNCONNECTED as exc:
            raise _unconnected(exc, self.place) from None
        except BROKEN as exc:
            raise TargetError(
                Kind.AMBIGUOUS, f"the connection failed before the answer ({type(exc).__name__})"
            ) from None
        except Unwanted as exc:
            raise TargetError(Kind.AMBIGUOUS, f"the target's answer {exc}") from None
        if status != httpx.codes.OK:
            raise _rest_error(status, headers, body)
        try:
            return body.decode()
        except UnicodeDecodeError:
            raise TargetError(Kind.AMBIGUOUS, "the target's answer is not in UTF-8") from None

    async def close(self) -> None:
        """Close the pool."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            await exchange.close()

    async def _opened(self) -> Exchange:
        """As the supabase client would send it: its credentials, and what httpx adds to any request."""
        async with httpx.AsyncClient(trust_env=False) as http:
            options = self._supabase.AsyncClientOptions(
                httpx_client=http, auto_refresh_token=False, persist_session=False
            )
            client = await self._supabase.acreate_client(self._url, self._key, options=options)
            headers = {
                **client.postgrest.headers,
                "content-type": "text/plain",
                "content-profile": self._schema,
                "user-agent": self._agent,
            }
            example = http.build_request("POST", f"{self._url}/rest/v1/rpc/outboxd", headers=headers)
        # sb_secret_… is no JWT: as a bearer token PostgREST would refuse it.
        if self._key.count(".") != 2:
            example.headers.pop("authorization", None)
        self._exchange = Exchange(
            example, self._deadline, self._trust, socket_options=SOCKET_OPTIONS, extensions=EXTENSIONS,
            longest=LONGEST_ANSWER,
        )  # fmt: skip
        return self._exchange


def _rest_error(status: int, headers: httpx.Headers, body: bytes) -> TargetError:
    """What an HTTP status and PostgREST's code mean. Its texts may quote rows, or anything: they stay here."""
    try:
        given = json.loads(body) if len(body) <= _LONGEST_REFUSAL else {}
        code = str(given.get("code") or "")
        denied, hint = denial_of(given), hint_of(given)
    except (ValueError, RecursionError, AttributeError):
        code, denied, hint = "", None, None
    if not re.fullmatch("[0-9A-Z]{5}|PGRST[0-9A-Z]{1,4}|[0-9]{3}", code):  # whoever answers there may say anything
        code = ""
    rule = rule_for(code, status)
    what = f"the target answered {status} {code}".rstrip()
    named = ": ".join(filter(None, (denied, hint))) if code == "42501" else None
    names = Refusal(code or None, status, message=named or None, hint=hint if code == "42501" else None)
    return TargetError(rule.kind, what, names, retry_after(headers) or rule.pause)


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds to stay away, as asked by a Retry-After of either form; None when it says nothing of use.

    A date is taken by the answerer's own clock: ours may differ.
    """
    value = headers.get("retry-after", "").strip()[:_LONGEST_TIME]
    if value.isdecimal():
        seconds = float(value)
    else:
        then, now = _date(value), _date(headers.get("date", "")[:_LONGEST_TIME])
        seconds = then - (time.time() if now is None else now) if then is not None else 0.0
    return min(seconds, LONGEST_PAUSE) if seconds > 0 else None


def _date(value: str) -> float | None:
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError, OSError):
        return None


def _unconnected(exc: Exception, where: str) -> TargetError:
    """Nothing was sent. A certificate that does not fit is for a person, any other failure may pass."""
    causes = list(_causes(exc))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            what = (
                f"the certificate of {where} does not prove that it is the target ({cause.verify_message.rstrip('.')})"
            )
            return TargetError(Kind.AUTH, what, Refusal("TLS_CERTIFICATE"))
        if isinstance(cause, ssl.SSLError):
            return TargetError(Kind.TRANSIENT, f"no TLS connection to {where} ({cause.reason})", Refusal("TLS"))
    why = next((cause.strerror for cause in reversed(causes) if isinstance(cause, OSError) and cause.strerror), None)
    return TargetError(Kind.TRANSIENT, f"no connection to {where} ({why or type(exc).__name__})")


def _causes(exc: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = exc
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
