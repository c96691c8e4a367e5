"""The one exception for what a user can mend; the command line prints it without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in a command, a config or a file.

    The message is one sentence that names the file, key or value and says what would be right.
    """


def behind(error: BaseException | None) -> UserError | None:
    """The mistake that led to an error: jsonargparse wraps what constructors raise."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error
