"""What can go wrong with either store, in a few kinds the relay knows how to meet.

Knows SQLSTATEs, HTTP statuses and PostgREST's codes. Knows nothing of connections. No error here ever carries
a row value: names, codes and our own sentences only (promise I10).
"""

import enum
from dataclasses import dataclass

STANDBY = "the source is a standby, which cannot say what has committed: give the primary's address"


class DaemonError(Exception):
    """Whatever the daemon raises by itself."""


class SourceUnavailable(DaemonError):
    """The source cannot be reached or lost the connection; trying again may help."""


class SourceUnfit(DaemonError):
    """The source is reachable but must not be read as it is; a person has to act."""


class CaptureLost(DaemonError):
    """A statement's rows could not be captured: its table's key, or the right to read it, was gone."""

    def __init__(self, table: str) -> None:
        quoted = table.replace("'", "''")
        super().__init__(  # what follows is a sentence for a person, never run
            f"a statement on {table} could not be captured, because its key or the right to read it was gone: "  # noqa: S608
            f"mend that, run `outboxd watch '{table}'` again, remove the mark (`delete from outbox.change "
            f"where op = 'resync' and table_name = '{quoted}'`), then touch the table's rows (update … set key = key), so that they travel anew"
        )
        self.table = table


class Fenced(DaemonError):
    """Another relay of this name has claimed the target since: this process must end."""


class Kind(enum.StrEnum):
    """One kind, one action. The table in README and `advice` speak of these."""

    TRANSIENT = "transient"  # wait and send again; counts for the breaker
    AMBIGUOUS = "ambiguous"  # it may have been applied: ask the target where it stands, then go on
    THROTTLE = "throttle"  # wait as told; does not count for the breaker
    SIZE = "size"  # too large or too slow: a smaller batch
    DATA = "data"  # the target refuses a row
    CONTRACT = "contract"  # table, column, function or key missing or unfit on the target
    AUTH = "auth"  # key or grant


@dataclass(frozen=True, slots=True)
class Refusal:
    """Names that lead to the cause; never values."""

    sqlstate: str | None = None
    status: int | None = None
    table: str | None = None
    constraint: str | None = None
    column: str | None = None
    message: str | None = None


class TargetError(DaemonError):
    """A request to the target did not do what it should."""

    def __init__(self, kind: Kind, what: str, refusal: Refusal | None = None, retry_after: float | None = None) -> None:
        super().__init__(what)
        self.kind = kind
        self.refusal = refusal or Refusal()
        self.retry_after = retry_after


_BY_CODE: tuple[tuple[tuple[str, ...], Kind], ...] = (
    (("OB", "3D", "3F", "42P01", "42703", "42883", "42804", "42P10", "42P13", "428C9"), Kind.CONTRACT),
    (("PGRST1", "PGRST2"), Kind.CONTRACT),
    (("42501", "0P", "28", "PGRST3"), Kind.AUTH),
    (("57014", "54"), Kind.SIZE),
    (("PGRST0", "08", "25", "40", "53", "55P03", "57", "58", "XX"), Kind.TRANSIENT),
    (("55",), Kind.CONTRACT),  # ON CONFLICT on a deferrable key
)

_BY_STATUS: dict[int, Kind] = {
    401: Kind.AUTH,
    402: Kind.AUTH,
    403: Kind.AUTH,
    408: Kind.AMBIGUOUS,
    413: Kind.SIZE,
    429: Kind.THROTTLE,
}


def classify(code: str | None, status: int | None = None) -> Kind:
    """Kind of a refusal: by SQLSTATE or PostgREST code first, by HTTP status second, else transient.

    Any other SQLSTATE speaks of the rows: a trigger on the target may raise whatever it likes.
    """
    for prefixes, kind in _BY_CODE:
        if code and code.startswith(prefixes):
            return kind
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if code and len(code) == 5:
        return Kind.DATA
    if status is None or status >= 500:
        return Kind.TRANSIENT
    # A redirect is not followed, with the key in hand; a captive portal sends one.
    return Kind.AMBIGUOUS if status < 400 else Kind.CONTRACT


_ADVICE: dict[Kind, str] = {
    Kind.TRANSIENT: "the target is away or overloaded; changes are safe in the outbox and go on by themselves",
    Kind.AMBIGUOUS: "the answer was lost; the target is asked where it stands before anything is sent again",
    Kind.THROTTLE: "the target asks for a pause; nothing to do unless it lasts",
    Kind.SIZE: "the batch is too large or too slow for the target: lower OUTBOXD_BATCH_CHANGES",
    Kind.DATA: "mend the row on the source or the constraint on the target; the relay tries again by itself",
    Kind.CONTRACT: "the target's tables do not fit: `outboxd check` names what is missing",
    Kind.AUTH: "the target does not accept the key: check OUTBOXD_SUPABASE_KEY (the secret key, sb_secret_…), or "
    "OUTBOXD_TARGET_DSN",
}
_ADVICE_BY_CODE: dict[str, str] = {
    "PGRST202": "PostgREST does not know function outboxd: run `outboxd setup target`, then in the SQL editor "
    "notify pgrst, 'reload schema'",
    "42501": "the key's role may not call function outboxd: use the secret key (sb_secret_…), or run "
    "`outboxd setup target` again",
}


def advice(kind: Kind, refusal: Refusal) -> str:
    """One sentence for the operator: what to do about it."""
    code = refusal.sqlstate or ""
    if refusal.message and (code.startswith("OB") or (kind is Kind.CONTRACT and refusal.table)):  # the door's words
        return refusal.message
    if code in {"42883", "3F000"} and not refusal.table:
        return "function outboxd is not on the target: run `outboxd setup target`"
    if code == "42501" and refusal.table:
        return f"a right is missing on the target: {refusal.message or '`outboxd check` names it'}"
    if kind is Kind.DATA:
        named = refusal.constraint or refusal.column
        where = f"a row of {refusal.table} is refused" if refusal.table else "a row is refused"
        return f"{where}{f' because of {named}' if named else ''} ({code}): {_ADVICE[kind]}"
    if kind is Kind.CONTRACT and not code:
        return "the address answers, but not as Supabase's Data API: check OUTBOXD_SUPABASE_URL"
    return _ADVICE_BY_CODE.get(code, _ADVICE[kind])
