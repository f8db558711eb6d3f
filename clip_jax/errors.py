"""The error a user can cause, and the exit statuses of the command."""

import difflib
from collections.abc import Iterable

DONE, BUG, USER, CHECK_FAILED, DIVERGED, RESTART, INTERRUPTED = 0, 1, 2, 3, 4, 42, 130


class UserError(Exception):
    """Something the user can mend: `where: what is wrong (got X); what to do`, on one line.

    Several findings are separated by newlines. The command exits with USER.
    """


class Stop(Exception):
    """The run ends early but in good order; `status` tells the launcher what to do."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def near(name: str, names: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` when one of `names` resembles `name`, else an empty string."""
    found = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean '{found[0]}'?" if found else ""
