"""What can go wrong with either store, in a few kinds the relay knows how to meet.

Knows SQLSTATEs, HTTP statuses and PostgREST's codes. Knows nothing of connections. No error here ever carries
a row value: names, codes and our own sentences only (promise I10).
"""

import enum
import re
from dataclasses import dataclass

from daemon.printable import word

STANDBY = "the source is a standby, which cannot say what has committed: give the primary's address"


class DaemonError(Exception):
    """Whatever the daemon raises by itself."""


class SourceUnavailable(DaemonError):
    """The source cannot be reached or lost the connection; trying again may help."""


class SourceUnfit(DaemonError):
    """The source is reachable but must not be read as it is; a person has to act."""


class SourceForeign(SourceUnfit):
    """Its transaction ids are not those the cursor speaks of: another cluster, or one that went back in time.

    `outboxd rebase` is the way on.
    """


class CopyRefused(DaemonError):
    """The source does not give a table's rows: another one's may still flow. `busy`: not now, because it is locked;
    `slow`: not so many at once; `other`: they are of something else by now, or in another order."""

    def __init__(self, table: str, why: str, *, busy: bool = False, slow: bool = False, other: bool = False) -> None:
        super().__init__(why)
        self.table = table
        self.busy = busy
        self.slow = slow
        self.other = other


class CaptureLost(DaemonError):
    """A statement's rows could not be captured: its table's key, or the right to read it, was gone."""

    def __init__(self, table: str) -> None:
        super().__init__(
            f"a statement on {table} could not be captured, because its key or the right to read it was gone: "
            f"mend that and run `outboxd watch {word(table)}` again; then the table is copied anew, by itself"
        )
        self.table = table


class SchemaUnfit(DaemonError):
    """The target's schema cannot be brought to what is wanted; a person has to act."""


class AmbiguousTable(DaemonError):
    """A name may mean two tables; whoever gave it has to say which."""


class Kind(enum.StrEnum):
    """One kind, one action (`ACTIONS`); its name is what metrics, status and README say."""

    TRANSIENT = "transient"
    AMBIGUOUS = "ambiguous"
    THROTTLE = "throttle"
    SIZE = "size"
    DATA = "data"
    CONTRACT = "contract"
    AUTH = "auth"
    FENCING = "fencing"


ACTIONS: dict[Kind, str] = {
    Kind.TRANSIENT: "waits and sends again, for as long as it takes; counts for the breaker",
    Kind.AMBIGUOUS: "it may have been applied: asks the target where it stands before anything is sent again",
    Kind.THROTTLE: "waits as told, five minutes at most; does not count for the breaker",
    Kind.SIZE: "sends smaller batches; a single change that is too large becomes a dead letter",
    Kind.DATA: "holds the keys that are refused as dead letters, the others flow; or stops, where on_error = halt",
    Kind.CONTRACT: "pauses, looks again every 15 s at the latest, and goes on by itself",
    Kind.AUTH: "pauses, looks again every 15 s at the latest, and goes on by itself",
    Kind.FENCING: "ends; started again it stands by",
}

LONGEST_PAUSE = 300.0  # however long an answer asks for


class Fenced(DaemonError):
    """Another relay of this name has claimed the target since: this process must end."""

    kind = Kind.FENCING


@dataclass(frozen=True, slots=True)
class Refusal:
    """Names that lead to the cause; never values. `sqlstate`: or PostgREST's code, or one of ours (TLS, SETTINGS)."""

    sqlstate: str | None = None
    status: int | None = None
    table: str | None = None
    constraint: str | None = None
    column: str | None = None
    message: str | None = None
    hint: str | None = None  # the statement that the target itself says would mend it
    gear: int | None = None  # in which the door was writing rows, when Postgres refused them


class TargetError(DaemonError):
    """A request to the target did not do what it should."""

    def __init__(self, kind: Kind, what: str, refusal: Refusal | None = None, retry_after: float | None = None) -> None:
        super().__init__(what)
        self.kind = kind
        self.refusal = refusal or Refusal()
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Rule:
    """What shares one kind and one sentence of advice. Codes are prefixes, the longest that fits decides.

    `pause`: seconds to stay away when the answer does not say. `alive`: no failure of the target's, so none for
    the breaker, although it is worth trying again.
    """

    kind: Kind
    advice: str
    codes: tuple[str, ...] = ()
    statuses: tuple[int, ...] = ()
    pause: float | None = None
    alive: bool = False


_AWAY = "the target is away or overloaded; changes are safe in the outbox and go on by themselves"
_SMALLER = "the batch is too large or too slow for the target; if it stays so, lower OUTBOXD_BATCH_CHANGES"
_MEND = "mend the row on the source or the constraint on the target; the relay tries again by itself"
_CHECK = "the target's tables do not fit: `outboxd check` names what is missing"
_RELOAD = "in the SQL editor: notify pgrst, 'reload schema'"
_KEY = (
    "the target does not accept the key: set OUTBOXD_SUPABASE_KEY to the secret key (sb_secret_…; dashboard, Settings, "
    "API Keys), or mend OUTBOXD_TARGET_DSN; a file that holds it is looked at again by itself"
)
_URL = "the address answers, but not as Supabase's Data API: check OUTBOXD_SUPABASE_URL"

# The one table of everything that can come back. Not listed: any other SQLSTATE speaks of the rows (a trigger on
# the target may raise whatever it likes), any other 5xx may pass, any other status is no Data API.
RULES: tuple[Rule, ...] = (
    # -- it may pass
    Rule(
        Kind.TRANSIENT,
        _AWAY,
        ("PGRST0", "PGRSTX", "08", "25", "40", "53", "57", "58", "XX"),
        (500, 502, 503, 504, 520, 521, 522, 523, 524, 525, 526, 527, 530, 544),
    ),
    Rule(
        Kind.TRANSIENT,
        "another session on the target writes the same rows; the relay tries again by itself. If it lasts: "
        "select pid, query from pg_stat_activity where backend_xmin is not null order by xact_start",
        ("40001", "40P01", "55P03"),
        alive=True,
    ),
    Rule(
        Kind.TRANSIENT,
        "the target's database is read-only (a full disk does that, or it is a standby): make room or enlarge the disk "
        "(dashboard, Settings, Compute and Disk); it goes on by itself",
        ("25006", "53100"),
    ),
    Rule(
        Kind.TRANSIENT,
        "the Supabase project is paused: restore it in the dashboard (Restore project); changes are safe in the outbox "
        "and go on within five minutes of that",
        statuses=(540,),
        pause=LONGEST_PAUSE,
    ),
    Rule(
        Kind.TRANSIENT,
        "no secure connection could be agreed on with the target: check that OUTBOXD_SUPABASE_URL leads to it and that "
        "nothing in between cuts TLS off",
        ("TLS",),
    ),
    # -- it may have been applied
    Rule(
        Kind.AMBIGUOUS,
        "the answer was lost; the target is asked where it stands before anything is sent again",
        statuses=(200, 201, 202, 203, 204, 205, 206, 408),
    ),
    Rule(
        Kind.AMBIGUOUS,
        "the address answers with a redirect, which is not followed, because the key would travel along: check "
        "OUTBOXD_SUPABASE_URL, and that no login page of a network is in the way",
        statuses=(300, 301, 302, 303, 304, 305, 306, 307, 308),
    ),
    # -- too much
    Rule(Kind.THROTTLE, "the target asks for a pause; nothing to do unless it lasts", statuses=(420, 429)),
    Rule(Kind.SIZE, _SMALLER, ("57014",), (413,)),
    # -- the rows. No smaller batch cures a program limit (54000: an index row, a tsvector, a nesting too large)
    Rule(Kind.DATA, _MEND, ("22", "23", "21", "27", "38", "44", "54", "P0")),
    # -- the tables
    Rule(
        Kind.CONTRACT,
        _CHECK,
        ("OB", "3D", "3F", "42P01", "42703", "42804", "42883", "42P10", "42P13", "428C9", "54011", "54023", "55"),
    ),
    Rule(Kind.CONTRACT, _URL, ("PGRST1",), (400, 404, 405, 406, 409, 410)),
    Rule(
        Kind.CONTRACT,
        "the Data API does not show the schema of function outboxd: add it under dashboard, Settings, Data API, "
        "Exposed schemas, or set OUTBOXD_EXPOSED_SCHEMA to one that is there",
        ("PGRST106",),
    ),
    Rule(
        Kind.CONTRACT, f"PostgREST's picture of the schema is old or the function is not there: {_RELOAD}", ("PGRST2",)
    ),
    Rule(
        Kind.CONTRACT,
        f"PostgREST does not know function outboxd: run `outboxd setup target`, then {_RELOAD}",
        ("PGRST202",),
    ),
    Rule(
        Kind.CONTRACT,
        "there are several functions outboxd and PostgREST cannot choose: list them in psql with \\df *.outboxd, drop "
        f"all but outboxd(text), then {_RELOAD}",
        ("PGRST203",),
    ),
    # -- not let in, or not to be trusted
    Rule(Kind.AUTH, _KEY, ("28", "0P", "PGRST3"), (401,)),
    Rule(
        Kind.AUTH,
        "the key has expired, is revoked or belongs to another project: create a secret key (sb_secret_…; dashboard, "
        "Settings, API Keys) and set OUTBOXD_SUPABASE_KEY; a file that holds it is looked at again by itself",
        ("PGRST301", "PGRST303"),
    ),
    Rule(
        Kind.AUTH,
        "the key's role may not call function outboxd: use the secret key (sb_secret_…), or run `outboxd setup target` "
        "again",
        ("42501",),
    ),
    Rule(
        Kind.AUTH,
        "the project is restricted, over its quota or unpaid: see dashboard, Organization, Billing; it goes on by itself",
        statuses=(402,),
    ),
    Rule(
        Kind.AUTH,
        "something before the Data API forbids the request: check OUTBOXD_SUPABASE_KEY, and the project's network "
        "restrictions (dashboard, Settings, Database) and firewall",
        statuses=(403,),
    ),
    Rule(
        Kind.AUTH,
        "captures go on; what is written to a secret file, .env or outboxd.toml is found within 15 s, or at once after "
        "SIGHUP; a variable of the environment needs a restart",
        ("SETTINGS",),
    ),
    Rule(
        Kind.AUTH,
        "the target cannot prove who it is, so nothing was sent: check OUTBOXD_SUPABASE_URL, this machine's clock, and "
        "the certificate: openssl s_client -connect <project-ref>.supabase.co:443",
        ("TLS_CERTIFICATE",),
    ),
)

_BY_CODE = {code: rule for rule in RULES for code in rule.codes}
_BY_STATUS = {status: rule for rule in RULES for status in rule.statuses}
_WHATEVER_THE_CODE = {401, 402, 403, 408, 413, 420, 429, 540, 544}  # a gateway's; Postgres is not heard in them


def rule_for(code: str | None, status: int | None = None) -> Rule:
    """The line of the table: by SQLSTATE or PostgREST's code first, by HTTP status second."""
    code = code or ""
    sqlstate = re.fullmatch("[0-9A-Z]{5}", code)
    if sqlstate or code.startswith(
        ("PGRST", "TLS", "SETTINGS")
    ):  # not a status that stands in as code: 544 is none of class 54
        for length in range(len(code), 0, -1):
            if found := _BY_CODE.get(code[:length]):
                return found
    if status in _BY_STATUS and (status in _WHATEVER_THE_CODE or not sqlstate):
        return _BY_STATUS[status]
    if sqlstate:
        return _BY_CODE["P0"]
    return _BY_CODE["PGRST0"] if status is None or status >= 500 else _BY_CODE["PGRST1"]


def classify(code: str | None, status: int | None = None) -> Kind:
    """Kind of a refusal."""
    return rule_for(code, status).kind


def passes(kind: Kind) -> bool:
    """May it pass by itself: is waiting, or asking again, the way on?"""
    return kind in {Kind.TRANSIENT, Kind.AMBIGUOUS, Kind.THROTTLE}


def of_rows(error: TargetError) -> bool:
    """Did the door itself answer that what it wrote failed so? A trigger may raise what else says that the target is away. Not
    where others write the same rows, nor where its disk is full."""
    refusal = error.refusal
    alive = rule_for(refusal.sqlstate).alive
    return error.kind is Kind.TRANSIENT and refusal.gear is not None and not alive and refusal.sqlstate != "53100"


def counts(error: TargetError) -> bool:
    """Is it a failure of the target's, as the breaker sees it? One that answers in its senses is alive."""
    refusal = error.refusal
    return error.kind is Kind.AMBIGUOUS or (
        error.kind is Kind.TRANSIENT and not rule_for(refusal.sqlstate, refusal.status).alive and not of_rows(error)
    )


def refuses_the_key(error: TargetError) -> bool:
    """Does the target turn away whoever comes with this key, or this password? Nothing moves before it is another."""
    code, status = error.refusal.sqlstate or "", error.refusal.status
    if error.kind is not Kind.AUTH or code.startswith(("TLS", "SETTINGS")) or status == 402:
        return False
    if re.fullmatch("[0-9A-Z]{5}", code):
        return code.startswith(("28", "0P"))  # not 42501: let in, and a grant is missing
    return not code.startswith("PGRST") or code.startswith("PGRST3")


SMALL = 64 * 1024  # bytes of a row that every gateway takes which is any use


def alone(error: TargetError, size: int) -> Kind:
    """What a SIZE error of a batch of one change of so many bytes is: there is no smaller one."""
    if error.kind is not Kind.SIZE:
        return error.kind
    if error.refusal.sqlstate == "57014":
        return Kind.TRANSIENT  # too slow: somebody may hold the row
    # Too large: no waiting makes it smaller. But a gateway that takes nothing must not make dead letters of everything.
    return Kind.DATA if size > SMALL else Kind.CONTRACT


def advice(kind: Kind, refusal: Refusal) -> str:
    """One sentence for the operator: what to do about it."""
    code = refusal.sqlstate or ""
    if refusal.message and (
        code.startswith("OB") or code == "55P03" or (kind is Kind.CONTRACT and refusal.table)
    ):  # the door's words
        return refusal.message
    if code == "42501" and refusal.hint:
        return f"a right is missing on the target: {refusal.hint}"
    if code in {"42883", "3F000"} and not refusal.table:
        return (
            "function outboxd is not on the target, or one that it calls: run `outboxd setup target` with this version"
        )
    if kind is Kind.CONTRACT and refusal.status == 413:
        return (
            "something before the Data API refuses even a small request: check OUTBOXD_SUPABASE_URL, and the largest "
            "body that a proxy in between lets pass"
        )
    if code == "42501" and refusal.table:
        return f"a right is missing on the target: {refusal.message or '`outboxd check` names it'}"
    if kind is Kind.DATA:
        named = refusal.constraint or refusal.column
        where = f"a row of {refusal.table} is refused" if refusal.table else "a row is refused"
        return f"{where}{f' because of {named}' if named else ''} ({code}): {_MEND}"
    rule = rule_for(code, refusal.status)
    return rule.advice if rule.kind is kind else _GENERAL[kind]


_GENERAL: dict[Kind, str] = {
    Kind.TRANSIENT: _AWAY,
    Kind.AMBIGUOUS: _BY_STATUS[408].advice,
    Kind.THROTTLE: _BY_STATUS[429].advice,
    Kind.SIZE: _SMALLER,
    Kind.DATA: _MEND,
    Kind.CONTRACT: _CHECK,
    Kind.AUTH: _KEY,
    Kind.FENCING: "another outboxd with this relay name has taken over; stop one of the two, or give each a name of its own",
}
