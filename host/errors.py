"""What can go wrong, in one place. Messages are one line: what, where, the limit, and what to do."""

from __future__ import annotations

from tellme.golden.project import DISTRIBUTION

LONGEST = 1000
"""Characters of a message; what a broken file holds may be repeated in it."""


class TellmeError(Exception):
    """Base of every error that the command line reports without a traceback. `exit_code` is the process's.

    The message is made one printable line, whatever names and values of a file it repeats.
    """

    exit_code = 2

    def __init__(self, message: object) -> None:
        line = "".join(c if c.isprintable() else " " if c.isspace() else f"\\u{ord(c):04x}" for c in str(message))
        super().__init__(line if len(line) <= LONGEST else line[: LONGEST - 4] + " ...")


class UserError(TellmeError):
    """An input that cannot be used: a file, a shape, an option."""


class DeviceError(TellmeError):
    """The accelerator stopped a pass, did not answer, or is not the one that was expected."""

    exit_code = 1


class CheckError(TellmeError):
    """A result differs from the golden model's."""

    exit_code = 1


def missing_package(error: ImportError, what: object) -> UserError:
    """Why `what` cannot be worked with: a package that a 32-bit board does not have, or that was left out."""
    return UserError(
        f"{what} needs the package {(error.name or str(error)).split('.')[0]}, which is not installed; install it (pip install {DISTRIBUTION} has it), or "
        "where there is none, as on 32-bit boards, convert the model elsewhere (tellme convert) and run the image with "
        "prompts as ids (tellme run --prompt-ids 1,2,3)"
    )
