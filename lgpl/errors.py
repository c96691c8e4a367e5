"""The one exception for what a user can mend; the command line prints it without a traceback."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in a command, a config or a file: one sentence, which names the file, key or value
    and says what would be right."""


def behind(error: BaseException | None) -> UserError | None:
    """The mistake that led to an error: jsonargparse wraps what constructors raise."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


@contextmanager
def as_user_error(what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of these kinds into a UserError that says what is wrong and ends in the error."""
    try:
        yield
    except kinds as error:
        raise UserError(f"{what} ({error}).") from error


def nearest(word: str, known: Iterable[str]) -> str:
    """The part of a message that offers the known word that is most like this one, if any is."""
    found = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {found[0]}?" if found else ""
