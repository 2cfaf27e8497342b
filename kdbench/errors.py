"""The one error that a user can mend: a clear line, exit code 2, no traceback."""


class UserError(ValueError):
    """A wrong option, file or environment; the message names the key, the value and what is allowed."""
