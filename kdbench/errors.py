"""Errors that are one line for a person, without a traceback."""


class UserError(ValueError):
    """A wrong option, file or environment; the message names the key, the value and what is allowed. Exit code 2."""


class RunFailed(RuntimeError):
    """A run that cannot go on for a reason that is no bug; the message says which run, why, and where its log is.

    Attributes:
        why: the reason alone.
    """

    def __init__(self, message: str, why: str | None = None) -> None:
        super().__init__(message)
        self.why = why or message
