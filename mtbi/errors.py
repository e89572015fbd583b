"""The one exception for mistakes a user can put right."""

from __future__ import annotations


class UserError(Exception):
    """Bad input, configuration or environment.

    The message says what is wrong, where, and what to do. Commands print it without a traceback and exit with status 2.
    """


class UnavailableError(UserError):
    """Something outside, such as the object store, does not answer now. Later it may: jobs that end with it start again."""


class DamagedError(UserError):
    """A stored sample is lost or damaged for good, while the place that holds it answers. `data.unreadable=skip` leaves it out.

    A place that refuses access or does not answer is none of it: see UnavailableError.
    """


class ElsewhereError(UnavailableError):
    """Another process of the run met an error and tells it."""

    def __init__(self) -> None:
        super().__init__("another process could not read its data; see what it says")
