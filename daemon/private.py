"""Who may read a file that holds a secret.

Knows file modes. Knows neither settings nor secrets.
"""

import stat
from collections.abc import Collection
from pathlib import Path


def world_may_read(file: Path, mounts: Collection[Path]) -> bool:
    """May every user of the machine read it? By its mode alone.

    Not asked below `mounts`, where a runtime puts secrets for one process: Docker gives them 0444, Kubernetes 0644.
    """
    if any(file.absolute().is_relative_to(mount) for mount in mounts):
        return False
    try:
        return bool(file.stat().st_mode & stat.S_IROTH)
    except OSError:  # gone since it was read
        return False
