"""The looks of addresses and keys: what can be said of them without asking anybody.

Knows libpq's, Supabase's and Prisma's forms. Must not know where a value is from or what it is used for. No
message made here repeats a value: somebody may have pasted the key into the wrong variable.
"""

import base64
import ipaddress
import json
import re
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo
from pydantic import SecretStr

from daemon.secrecy import mask, names_secret

# Prisma's own parameters: libpq refuses a URL that has one, and the DATABASE_URL of a Prisma user often does.
_PRISMA = frozenset(
    ["schema", "connection_limit", "pool_timeout", "pgbouncer", "statement_cache_size", "socket_timeout"]
)
_KEYWORDS = re.compile(r"(?:\s*\w+\s*=\s*(?:'(?:\\.|[^'\\])*'|(?:\\.|[^\s\\'])+)(?:\s+|$))+")

_UNREADABLE = "cannot be read as an address: in a user's name or a password % is written %25, a space %20, @ %40, / %2F, : %3A, [ %5B"
# libpq looks at these when it connects, where they would pass for a server that is away.
_WORDS = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "channel_binding": ("disable", "prefer", "require"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
}
_NUMBERS = ("connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout")  # fmt: skip


def check_dsn(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    scheme = re.match(r"([A-Za-z][\w+.-]*)://", text)
    if scheme is None:
        if not _KEYWORDS.fullmatch(text):
            raise ValueError("is neither a postgresql:// address nor a list of key=value pairs")
        if not re.search(r"\b(?:host|hostaddr|dbname|service)\s*=", text):
            raise ValueError("names neither a host nor a database")
    elif scheme[1].startswith(("postgres+", "postgresql+")):
        raise ValueError("is an SQLAlchemy address: write postgresql:// without the driver's name")
    elif scheme[1] not in {"postgres", "postgresql"}:
        raise ValueError("must begin with postgresql://")
    else:
        parts = _split(text, _UNREADABLE)
        if not parts.netloc.rpartition("@")[2] and not parts.path.strip("/") and "host=" not in parts.query:
            raise ValueError("names neither a host nor a database")
    _read_by_libpq(for_libpq(secret))
    return secret


def _read_by_libpq(text: str) -> None:
    """What it would refuse, now or when it connects."""
    try:
        told = {name: str(value) for name, value in conninfo_to_dict(text).items()}
    except (ProgrammingError, UnicodeError) as exc:  # its message may quote the password
        option = re.search("query parameter|connection option", str(exc))
        raise ValueError("has an option that libpq does not know" if option else _UNREADABLE) from None
    hosts, ports = told.get("hostaddr", told.get("host", "")).split(","), told.get("port", "").split(",")
    if "\0" in text or any("@" in host[1:] for host in hosts):  # a socket's name may begin with it
        raise ValueError(_UNREADABLE)
    if not all(re.fullmatch(r"\d{1,5}", port, re.ASCII) and 0 < int(port) < 65_536 for port in ports if port):
        raise ValueError("has a port that is no number up to 65535 (in a password / is written %2F, : %3A)")
    if len(ports) not in {1, len(hosts)}:
        raise ValueError("has not as many ports as hosts")
    for name, words in _WORDS.items():
        if told.get(name, words[0]) not in words:
            raise ValueError(f"has a value of {name} that is none of {', '.join(words)}")
    for name in _NUMBERS:
        if not re.fullmatch(r"-?\d{1,9}", told.get(name, "0"), re.ASCII):
            raise ValueError(f"has a value of {name} that is no number")


def _split(text: str, sentence: str = "cannot be read as an address") -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError:  # its message may quote the password
        raise ValueError(sentence) from None


def looks_pooled(dsn: str) -> bool:
    """Whether an address looks like a transaction pooler's: Supabase's port, Neon's host, Prisma's flag."""
    rest = dsn.rpartition("@")[2]
    return bool(re.search(r":6543\b|\bport\s*=\s*'?6543\b|-pooler\.|\bpgbouncer=true\b", rest))


def project_of(address: str) -> str | None:
    """The Supabase project that an address names: the API's host, the database's, or the user that a pooler is given."""
    found = re.search(r"(?:^|[/@.])(?:db\.)?([a-z]{20})\.supabase\.(?:co|in|net)\b", address)
    found = found or re.search(r"\bpostgres\.([a-z]{20})(?=[:@\s'])[^\s]*", address)
    return found[1] if found else None


def check_url(text: str) -> str:
    parts = _split(text)
    host = parts.hostname or ""
    if host in {"supabase.com", "app.supabase.com"}:
        project = re.search(r"/project/([a-z0-9]+)", parts.path)
        api = f"https://{project[1] if project else '<project-ref>'}.supabase.co"
        raise ValueError(f"is the dashboard's address; the API's is {api}")
    if "@" in parts.netloc:
        raise ValueError("must not carry a user or a password")
    if parts.scheme not in {"http", "https"} or not host:
        raise ValueError("must begin with https://")
    if _reach(host) == "link-local":
        raise ValueError("is a link-local address")
    if parts.scheme == "http" and _reach(host) != "loopback":
        raise ValueError("must begin with https:// (http:// only to this machine): requests carry the key")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("must be the bare address: what comes after the host is added by outboxd")
    try:
        port = parts.port
    except ValueError:
        raise ValueError("has a port that is no number") from None
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")


def listed(value: object) -> object:
    """A variable of the environment has one text where TOML has a list."""
    return [one.strip() for one in value.split(",") if one.strip()] if isinstance(value, str) else value


def check_hosts(names: list[str]) -> list[str]:
    if not all(re.fullmatch(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?", name, re.ASCII) for name in names):
        raise ValueError("must be names of hosts, without a port: addresses and localhost are known already")
    return names


def _reach(host: str) -> Literal["loopback", "link-local", "any"]:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "loopback" if host == "localhost" or host.endswith(".localhost") else "any"
    return "loopback" if address.is_loopback else "link-local" if address.is_link_local else "any"


def kind_of_key(key: str) -> Literal["secret", "jwt"]:
    if re.fullmatch(r"sb_secret_[\x21-\x7e]+", key):
        return "secret"
    claims: object = None
    if re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", key, re.ASCII):
        payload = key.split(".")[1]
        try:
            claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        except ValueError:
            claims = None
    role = claims.get("role") if isinstance(claims, dict) else None
    if role == "service_role":
        return "jwt"
    if role == "anon" or key.startswith("sb_publishable_"):
        raise ValueError("is the publishable (anon) key; outboxd needs the secret key")
    if role is not None:
        raise ValueError("is a token for another role; outboxd needs the secret key or that of service_role")
    raise ValueError("is neither a secret key (sb_secret_…) nor a service_role token")


def check_key(secret: SecretStr) -> SecretStr:
    kind_of_key(secret.get_secret_value())
    return secret


def for_libpq(dsn: SecretStr | None) -> str:
    if dsn is None:
        raise LookupError("this command was loaded without needing that address")
    address, mark, query = dsn.get_secret_value().partition("?")
    if not mark or "://" not in address:
        return dsn.get_secret_value()
    kept = "&".join(each for each in query.split("&") if each.partition("=")[0] not in _PRISMA)
    return f"{address}?{kept}" if kept else address


def carries_secret(setting: str, value: str) -> bool:
    """Is there anything in it that others must not read? An address without a password has nothing."""
    return setting == "supabase_key" or masked(setting, value) != value


def leans_on(dsn: str, *, password: bool) -> str | None:
    """Whose password would go to this address, which has none. `password`: is there a PGPASSWORD?"""
    if re.search(r"\bservice(?:file)?\s*=", dsn):
        return "a service file"
    return "PGPASSWORD" if password and not carries_secret("source_dsn", dsn) else None


def masked(setting: str, secret: str) -> str:
    if setting != "supabase_key":
        return _masked_address(secret) if re.match(r"\s*[A-Za-z][\w+.-]*://", secret) else _masked_pairs(secret)
    if kind_of_key(secret) == "jwt":
        return "set (jwt)"
    # Six characters tell two keys apart, and say nothing about the rest when the rest is long enough.
    return f"set (secret, {secret[:16]}…)" if len(secret) >= 30 else "set (secret)"


# What libpq itself does not show, and keys that stand in for a password: it hides those with all that is for debugging.
SECRET_OPTIONS = frozenset(
    each.keyword.decode()
    for each in Conninfo.get_defaults()
    if each.dispchar == b"*" or each.keyword.startswith(b"scram_")
) | {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}


def _is_secret(name: str, value: str) -> bool:
    return (
        unquote(name).strip().lower() in SECRET_OPTIONS or names_secret(name) or mask(unquote(value)) != unquote(value)
    )


def _masked_address(address: str) -> str:
    """Of each option what it is called, and its value where that is no secret."""

    def option(found: re.Match[str]) -> str:
        return f"{found[1]}=***" if _is_secret(found[1], found[2]) else found[0]

    address = re.sub("(?<=[?&])([^=&]+)=([^&]*)", option, address)
    return re.sub(r"(://[^:@/]*:).*(?=@)", r"\1***", address, flags=re.DOTALL)


def _masked_pairs(text: str) -> str:
    return _PAIR.sub(lambda pair: f"{pair[1]}{pair[2]}***" if _is_secret(pair[1], pair[3]) else pair[0], text)


_PAIR = re.compile(r"(\w+)(\s*=\s*)('(?:\\.|[^'\\])*'|(?:\\.|[^\s\\])+)", re.DOTALL)
