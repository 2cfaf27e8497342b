"""Errors that are shown in one line, without a traceback."""


class UserError(ValueError):
    """A wrong option, file or environment; the message names the key, the value and what is allowed. Exit code 2."""


class RunFailed(RuntimeError):
    """A run failed for a reason that is not a bug; the message says which run, why, and where its log is.

    Attributes:
        why: the reason alone.
    """

    def __init__(self, message: str, why: str | None = None) -> None:
        super().__init__(message)
        self.why = why or message
