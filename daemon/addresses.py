"""Do the settings lead where they are meant to, taken together: each other's addresses, another project's, twice the same?

Knows how two addresses are compared. Changes nothing, and says nothing of a store that is away.
"""

from daemon import install
from daemon.settings import Settings

_NAMES = "OUTBOXD_SOURCE_DSN (or DATABASE_URL) and OUTBOXD_TARGET_DSN (or SUPABASE_DB_URL)"


def amiss(settings: Settings) -> str | None:
    """What is wrong, and what to do about it; None: nothing that can be seen."""
    if settings.projects:
        api, database = settings.projects
        return (
            f"OUTBOXD_SUPABASE_URL is of project {api}, and OUTBOXD_TARGET_DSN (or SUPABASE_DB_URL) of {database}: "
            "give both of one project"
        )
    if settings.source_dsn is None or settings.target_dsn is None:
        return None
    found = install.misdirected(settings.source_conninfo, settings.target_conninfo)
    return f"{found}: see {_NAMES}" if found else None
