"""Makes the passwords and keys of the local stack: once, as files of a volume, so that none is typed or committed.

Knows which service asks for what. Run by the service `secrets` of compose.yaml with the image's own Python; when the
files are there, it changes nothing.
"""

import secrets
import sys
from pathlib import Path

from daemon.demo.keys import ApiKeys

# Every container of the stack sees the folder, each under a user of its own.
_FILE, _FOLDER = 0o444, 0o755


def made() -> dict[str, str]:
    """The files' names and contents."""
    keys = ApiKeys()
    app, outboxd, project, owner, authenticator, grafana = (secrets.token_urlsafe(24) for _ in range(6))
    return {
        "app_password": app,
        "outboxd_password": outboxd,
        "project_password": project,
        "owner_password": owner,
        "authenticator_password": authenticator,
        "grafana_password": grafana,
        "jwt_secret": keys.jwt_secret,
        # What outboxd finds by itself, and what its set-up is told to use instead.
        "source_dsn": f"postgresql://outboxd:{outboxd}@source:5432/app",
        "supabase_key": keys.secret,
        "source_owner_dsn": f"postgresql://app:{app}@source:5432/app",
        "target_owner_dsn": f"postgresql://supabase_owner:{owner}@project:5432/postgres",
        "postgrest_dsn": f"postgresql://authenticator:{authenticator}@project:5432/postgres",
        # What Supabase's gateway does with keys that are no JWT.
        "gateway_keys.conf": f'"{keys.secret}" "Bearer {keys.service_jwt}";\n'
        f'"{keys.publishable}" "Bearer {keys.anon_jwt}";\n',
        "pg_service.conf": f"[app]\nhost=source\ndbname=app\nuser=app\npassword={app}\n",
    }


def main(folder: Path) -> None:
    """Write them, unless the last one says that all are there."""
    done = folder / "complete"
    if done.exists():
        return
    for name, content in made().items():
        file = folder / name
        file.unlink(missing_ok=True)
        file.write_text(content, "utf-8")
        file.chmod(_FILE)
    folder.chmod(_FOLDER)
    done.touch(_FILE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
