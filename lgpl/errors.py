"""The one exception for what a user can mend; the command line prints it without a traceback."""


class UserError(ValueError):
    """A mistake in a command, a config or a file.

    The message is one sentence that names the file, key or value and says what would be right.
    """
