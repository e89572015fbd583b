"""The exceptions for failures that the user can put right."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in input, configuration or environment.

    The message names what is wrong, where, and what to do. Commands print it without a traceback and exit with status 2.
    """


class UnavailableError(UserError):
    """An external service, such as the object store, does not answer now. Slurm jobs that end with it start again."""


class DamagedError(UserError):
    """Stored data are missing or damaged, and reading them again will not help. `data.unreadable=skip` leaves them out.

    A store that refuses access raises UserError. A store that does not answer raises UnavailableError.
    """


class ElsewhereError(UnavailableError):
    """Another process of the run failed. That process prints the cause."""

    def __init__(self) -> None:
        super().__init__("another process could not read its data; see that process's log")
