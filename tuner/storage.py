"""Opens the database that holds the studies: a file of this machine, or a server that several machines share."""

from __future__ import annotations

import time
import warnings
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage

from attnforge.errors import AttnforgeError

HEARTBEAT_S = 20
"""Between two signs of life of a tuner, for each trial that it runs."""
GRACE_S = 90
"""Without one, after which another tuner takes a trial over: a machine may swap, or its network stumble."""
DRIVERS = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}
"""By a URL's scheme: which driver SQLAlchemy takes for it has changed from version to version."""
EXTRAS = {"postgresql": "postgresql"}
"""By database: the extra of attnforge that installs its driver."""
LIBPQ_OPTIONS = {
    "connect_timeout": 20, "keepalives_idle": 20, "keepalives_interval": 5, "keepalives_count": 4,
    "tcp_user_timeout": 40_000,
}  # fmt: skip
"""So that a host that is gone is noticed within a minute, not in hours (seconds; the last in milliseconds)."""
LIBPQ_DRIVERS = ("postgresql+psycopg", "postgresql+psycopg2")
OPENING_ATTEMPTS = 8
"""Tuners that start together all create the tables; all but one of them fail, and find the tables the next time."""

STORAGE_ERRORS = (OSError, RuntimeError, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)
"""What Optuna raises when a database is out of reach, broken, or none."""


class StorageUnusableError(AttnforgeError):
    """A storage that --storage names cannot be used."""

    remedy = "see to the server, or name another with --storage"

    def __init__(self, url: str, reason: object) -> None:
        super().__init__(f"the storage {shown(url)} cannot be used ({_first_line(reason)}): {self.remedy}")


class StorageUrlError(StorageUnusableError, ValueError):
    """What --storage names is no URL of a database."""

    remedy = "name one such as postgresql://user@host/database or sqlite:////path/to/file"

    def __init__(self, url: str) -> None:
        super().__init__(url, "it is no URL of a database")


class DriverMissingError(StorageUnusableError):
    """The Python package that speaks to a database is not installed."""

    def __init__(self, url: str, database: str, error: ImportError) -> None:
        extra = EXTRAS.get(database)
        self.remedy = (
            f'pip install "attnforge[{extra}]"' if extra else "install the driver that SQLAlchemy names for it"
        )
        super().__init__(url, str(error))


class TrialsNotStoredError(AttnforgeError):
    """The database was there when the tune began, and is not now."""

    def __init__(self, url: str | None, error: Exception) -> None:
        where = "in the user's folder" if url is None else shown(url)
        super().__init__(
            f"trials can no longer be stored {where} ({_first_line(error)}): what was finished is kept, the same"
            " command goes on"
        )


def innermost(error: BaseException) -> BaseException:
    """What a database's driver said, without what SQLAlchemy and Optuna say around it."""
    inner = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else error.__cause__
    return error if inner is None else innermost(inner)


def _first_line(reason: object) -> str:
    words = innermost(reason) if isinstance(reason, Exception) else reason
    return (str(words).strip().splitlines() or [type(words).__name__])[0]


def sqlite_url(path: object) -> str:
    """The URL of a SQLite file."""
    return sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()


def shown(url: str) -> str:
    """A URL for people to read: without its password."""
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return repr(url)


def check_url(url: str) -> None:
    """Whether a storage could be opened at ``url``, as far as this machine can tell. Raises as open_storage() does."""
    try:
        parsed = sqlalchemy.make_url(url)
        _with_driver(parsed).get_dialect().import_dbapi()
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError) as error:
        raise StorageUrlError(url) from error
    except ImportError as error:
        raise DriverMissingError(url, parsed.get_backend_name(), error) from error


def open_storage(url: str) -> RDBStorage:
    """The storage at an SQLAlchemy URL; tables are created where there are none.

    Raises StorageUrlError, DriverMissingError, and STORAGE_ERRORS when the database is out of reach or is none.
    """
    check_url(url)
    parsed = _with_driver(sqlalchemy.make_url(url))
    full = parsed.render_as_string(hide_password=False)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for attempt in range(OPENING_ATTEMPTS):
        try:
            return _opened(full, _engine_options(parsed))
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError, sqlalchemy.exc.OperationalError):
            if attempt == OPENING_ATTEMPTS - 1:
                raise
            time.sleep(0.05 * 2**attempt)
    raise AssertionError("unreachable")


def _with_driver(url: sqlalchemy.URL) -> sqlalchemy.URL:
    return url.set(drivername=DRIVERS.get(url.drivername, url.drivername))


def _engine_options(url: sqlalchemy.URL) -> dict[str, Any]:
    """SQLAlchemy's, by database; what the URL says of its driver counts more."""
    # Another tuner may hold a SQLite file for as long as a transaction takes.
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": 60}}
    # A server may have been restarted since the last trial: each connection is tried before it is used.
    options = LIBPQ_OPTIONS if url.drivername in LIBPQ_DRIVERS else {}
    return {"connect_args": {k: v for k, v in options.items() if k not in url.query}, "pool_pre_ping": True}


def _opened(url: str, options: dict[str, Any]) -> RDBStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return RDBStorage(url, engine_kwargs=options, heartbeat_interval=HEARTBEAT_S, grace_period=GRACE_S)
