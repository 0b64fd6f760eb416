"""The Data API's way to the door.

Knows HTTP and how it fails. Knows neither the door's documents nor its answers. The only module that imports
supabase. A request is never repeated here.
"""

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from daemon.errors import Kind, Refusal, TargetError, classify

if TYPE_CHECKING:
    import supabase


class RestDoor:
    """The Data API, through the supabase client's own session.

    The body is text/plain to a function with one unnamed text parameter: PostgREST hands it on unparsed.
    """

    def __init__(
        self, url: str, key: str, *, exposed_schema: str = "public", deadline: float = 30.0, user_agent: str = "outboxd"
    ) -> None:
        self._url = url.rstrip("/")
        self._key = key
        self._schema = exposed_schema
        self._deadline = deadline
        self._agent = user_agent
        import supabase  # here, because it costs most of a second and 70 MB, and the other door does without

        self._supabase = supabase
        self._client: supabase.AsyncClient | None = None
        self._http: httpx.AsyncClient | None = None

    async def send(self, document: str) -> str:
        """POST the document; the body of a 200 is the answer."""
        client = await self._opened()
        headers = {
            **client.postgrest.headers,
            "content-type": "text/plain",
            "content-profile": self._schema,
            "user-agent": self._agent,
        }
        try:
            # httpx' own timeouts are per chunk: a body that drips would never end.
            async with asyncio.timeout(self._deadline):
                response = await client.postgrest.session.request(
                    "POST", f"{self._url}/rest/v1/rpc/outboxd", content=document.encode(), headers=headers
                )
        except TimeoutError:
            raise TargetError(Kind.AMBIGUOUS, f"the target did not answer within {self._deadline:g} s") from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as exc:
            raise TargetError(
                Kind.TRANSIENT, f"no connection to {urlsplit(self._url).netloc} ({type(exc).__name__})"
            ) from None
        except httpx.HTTPError as exc:
            raise TargetError(
                Kind.AMBIGUOUS, f"the connection failed before the answer ({type(exc).__name__})"
            ) from None
        if response.status_code != httpx.codes.OK:
            raise _rest_error(response)
        return response.text

    async def close(self) -> None:
        """Close the pool."""
        if self._http is not None:
            await self._http.aclose()
        self._client = self._http = None

    async def _opened(self) -> "supabase.AsyncClient":
        if self._client is None:

            async def keep_one_key(request: httpx.Request) -> None:
                # sb_secret_… is no JWT: as a bearer token PostgREST would refuse it.
                if self._key.count(".") != 2:
                    request.headers.pop("authorization", None)

            # A redirect would carry the key to another host; a proxy from the environment would see it.
            self._http = httpx.AsyncClient(
                http2=False, follow_redirects=False, trust_env=False, timeout=httpx.Timeout(self._deadline, connect=5.0),
                limits=httpx.Limits(max_connections=4, keepalive_expiry=30.0), event_hooks={"request": [keep_one_key]},
            )  # fmt: skip
            options = self._supabase.AsyncClientOptions(
                httpx_client=self._http, auto_refresh_token=False, persist_session=False
            )
            self._client = await self._supabase.acreate_client(self._url, self._key, options=options)
        return self._client


def _rest_error(response: httpx.Response) -> TargetError:
    """What an HTTP status and PostgREST's code mean. Details and hints may quote rows: they are not read."""
    try:
        body = response.json()
        code = str(body["code"]) if isinstance(body, dict) and body.get("code") else None
        said = str(body.get("message", "")) if isinstance(body, dict) else ""
    except (ValueError, RecursionError):
        code, said = None, ""
    kind = classify(code, response.status_code)
    names = Refusal(
        code, response.status_code, message=said if code and code.startswith(("42501", "PGRST3", "PGRST2")) else None
    )
    retry_after = response.headers.get("retry-after", "")
    what = f"the target answered {response.status_code}" + (f" {code}" if code else "")
    return TargetError(kind, what, names, float(retry_after) if retry_after.isdecimal() else None)
