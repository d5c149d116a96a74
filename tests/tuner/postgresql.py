"""A PostgreSQL server of a test's own: Debian's programs, in a temporary folder, on loopback."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

USER = "postgres"


def programs() -> Path | None:
    """The folder of the newest installed PostgreSQL's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


def why_not() -> str | None:
    """Why no server can be started here; None when one can."""
    if programs() is None:
        return "PostgreSQL is not installed: apt-get install postgresql"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return 'psycopg is not installed: pip install "attnforge[postgresql]"'
    if os.geteuid() == 0 and (shutil.which("setpriv") is None or not _has_user()):
        return f"PostgreSQL refuses to run as root, and there is no user {USER} or no setpriv to become it"
    return None


def _has_user() -> bool:
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return False
    return True


@contextmanager
def server() -> Iterator[str]:
    """The URL of a new, empty database; server and data are gone afterwards."""
    folder = programs()
    assert folder is not None
    with TemporaryDirectory(prefix="attnforge-postgresql-", ignore_cleanup_errors=True) as scratch:
        data, port = Path(scratch, "data"), _free_port()
        if os.geteuid() == 0:
            shutil.chown(scratch, USER)
        _run(folder / "initdb", "-D", data, "-U", USER, "--auth=trust", "--no-sync", folder=scratch)
        options = f"-p {port} -h 127.0.0.1 -k {scratch} -F -c max_connections=60"
        _run(folder / "pg_ctl", "-D", data, "-w", "-l", Path(scratch, "log"), "-o", options, "start", folder=scratch)
        try:
            yield f"postgresql://{USER}@127.0.0.1:{port}/postgres"
        finally:
            _run(folder / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop", folder=scratch)


def _run(*command: object, folder: str) -> None:
    become = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"] if os.geteuid() == 0 else []
    words = [*become, *map(str, command)]
    done = subprocess.run(
        words, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
