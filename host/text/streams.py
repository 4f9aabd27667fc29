"""Text that enters and leaves the command: bytes that are no characters are refused with their place, characters that a stream cannot hold are escaped."""

from __future__ import annotations

import codecs
import errno
import os
import sys

from tellme.host.errors import UserError

_ESCAPE = "tellme.escape"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EROFS, errno.ENXIO}
"""What writing to a stream can fail with, besides that nobody reads it any more."""


def checked(text: str, what: object) -> str:
    """`text` if it is text. Bytes of the command line that Python could not read (surrogate escapes; in an ASCII locale every character beyond it) are
    read as UTF-8.

    Raises
    ------
    UserError : a byte or half a surrogate pair is no character; names it and its place.
    """
    if not any("\ud800" <= c <= "\udfff" for c in text):
        return text
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as e:
        half = ord(text[e.start])
        raise UserError(
            f"{what}: is not text (character {e.start} is U+{half:04X}, half of a surrogate pair); leave it out"
        ) from e
    return decoded(data, what)


def readable(name: str) -> str:
    """A file's name as text; bytes of it that are none become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def decoded(data: bytes, what: object, encoding: str = "utf-8") -> str:
    """The text of bytes.

    Raises
    ------
    UserError : a byte belongs to no character; names it and its offset.
    """
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as e:
        raise UserError(
            f"{what}: is not {encoding.upper()} text ({e.reason} at byte {e.start}); convert it first"
        ) from e


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""Writes what a stream's encoding does not have as JSON does (\u00e9), so that an object stays one."""
    assert isinstance(error, UnicodeEncodeError)
    bad = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{bad[i]:02x}{bad[i + 1]:02x}" for i in range(0, len(bad), 2)), error.end


def prepare_streams() -> None:
    """Lets standard output and error escape what they cannot hold (a locale without UTF-8, names of files that are not text) instead of failing."""
    codecs.register_error(_ESCAPE, _escape)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ESCAPE)


def finish_output() -> None:
    """Writes what is still buffered, while an error can be reported."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def drop_output() -> None:
    """Whatever is still to be written to standard output goes nowhere: Python would try again when it exits."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def output_failed(error: OSError) -> bool:
    """Whether an error is one of writing to a stream; those of files have a name."""
    return error.filename is None and error.errno in _FULL
