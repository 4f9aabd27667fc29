"""What can go wrong, in one place. Messages are one line: what, where, the limit, and what to do."""

from __future__ import annotations


class TellmeError(Exception):
    """Base of every error that the command line reports without a traceback. `exit_code` is the process's."""

    exit_code = 2


class UserError(TellmeError):
    """An input that cannot be used: a file, a shape, an option."""


class DeviceError(TellmeError):
    """The accelerator stopped a pass, did not answer, or is not the one that was expected."""

    exit_code = 1


class CheckError(TellmeError):
    """A result differs from the golden model's."""

    exit_code = 1
