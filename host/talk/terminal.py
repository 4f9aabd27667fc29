"""`tellme chat`: a conversation in a terminal or over a pipe."""

from __future__ import annotations

import codecs
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tellme.golden.config import AcceleratorConfig
from tellme.host.errors import TellmeError, UserError
from tellme.host.provenance import json_line
from tellme.host.talk.session import Session, Totals, Turn
from tellme.host.text.streams import checked, decoded

HELP = """/reset  start a new conversation
/retry  answer the last message once more, with another seed
/save FILE, /load FILE  keep the conversation, go on with one
/set    how tokens are chosen; /set temperature 0.8 changes it
/stats  what this session did so far
/exit   leave (Ctrl-D too)
Ctrl-C  stop an answer; a second time, leave
//...   say something that starts with /
...\\   at the end of a line: the message goes on in the next"""
COMMANDS = "/reset, /retry, /save, /load, /set, /stats, /exit, /help"
SETTINGS = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "seed": int,
}


@contextmanager
def _stopping(turn: Turn) -> Iterator[None]:
    """Ctrl-C ends the answer, not the session: no pass is torn apart. A second one raises KeyboardInterrupt."""
    pressed = False

    def handler(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        turn.stop()

    try:
        before = signal.signal(signal.SIGINT, handler)
    except ValueError:  # not the main thread: whoever runs us handles Ctrl-C
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _rate(tokens: float, seconds: float) -> str:
    return f"{tokens / seconds:,.1f}" if tokens and seconds > 0 else "-"


def describe(turn: Turn, config: AcceleratorConfig, *, simulated: bool) -> str:
    """One line about an answer: tokens, time to the first one, rate, energy."""
    report = turn.report
    seconds = report.seconds - report.seconds_prefill
    said = (
        f"{len(report.new_ids)} tokens; prompt {len(report.prompt_ids)}, of which {turn.cached} cached; first token "
        f"after {report.seconds_prefill:.2f} s, then {_rate(report.decoded, seconds)} tokens/s"
    )
    if report.cycles_decode:
        cycles = sum(report.cycles_decode)
        word = "simulated" if simulated else "accelerator alone"
        said += f" ({_rate(report.decoded * config.clock_hz, cycles)} {word} at {config.clock_hz / 1e6:g} MHz)"
    if report.drafted:
        said += (
            f"; {report.accepted} of {report.drafted} guesses right, {report.tokens_per_pass or 0:.2f} tokens a pass"
        )
    if turn.joules is not None and report.new_ids:
        said += f"; {turn.joules / len(report.new_ids):.3f} J/token"
    return said


def describe_totals(totals: Totals, power: str) -> str:
    """What a session did, a line each."""
    energy = (
        f"{totals.joules:.1f} J, {totals.joules / max(totals.new_tokens, 1):.3f} J/token ({power})"
        if totals.joules is not None
        else power
    )
    return "\n".join(
        (
            f"answers        {totals.answers}",
            f"prompt tokens  {totals.prompt_tokens:,}, of which {totals.cached_tokens:,} cached",
            f"new tokens     {totals.new_tokens:,}",
            f"prefill        {totals.seconds_prefill:.2f} s",
            f"decode         {totals.seconds_decode:.2f} s, {_rate(totals.decode_tokens, totals.seconds_decode)} tokens/s",
            f"energy         {energy}",
        )
    )


def power_words(session: Session, backend: str) -> str:
    """Where the energy is measured, or why it is not."""
    if backend != "board":
        return "not measured: not a board"
    if not session.meter.rails:
        return "not measured: no power sensors in /sys/class/hwmon"
    return "measured at " + ", ".join(rail.name for rail in session.meter.rails)


class Chat:
    """The loop of `tellme chat`.

    Parameters
    ----------
    session : the conversation.
    backend : 'sim', 'golden' or 'board'.
    model : its name, for the objects of `as_json`.
    as_json : one JSON object an answer instead of its text, {"error": why} for a message that is refused.
    read : gives the next line, raises EOFError at the end. From the terminal or standard input if None.
    """

    def __init__(
        self,
        session: Session,
        backend: str,
        *,
        model: str = "",
        as_json: bool = False,
        read: Callable[[], str] | None = None,
    ):
        self.session = session
        self.backend = backend
        self.model = model
        self.as_json = as_json
        if read is None and sys.stdin is None:
            raise UserError("standard input is closed; chat reads its messages from it, one a line")
        self.interactive = read is None and sys.stdin.isatty()
        self.refused = 0
        self._read = read or (self._ask if self.interactive else self._line)
        self._lines = 0

    def _ask(self) -> str:
        try:
            text = checked(input("> "), "the message")
            while text.endswith("\\"):
                text = text[:-1] + "\n" + checked(input(". "), "the message")
            return text
        except UnicodeDecodeError as e:
            raise UserError(
                f"the message: is not {e.encoding} text (byte 0x{e.object[e.start]:02x}); write it again"
            ) from e

    def _line(self) -> str:
        """The next line of standard input, in the locale's encoding; in UTF-8 where that is ASCII, as what is piped mostly is."""
        self._lines += 1
        what = f"line {self._lines} of the input"
        source = getattr(sys.stdin, "buffer", None)
        try:
            data = sys.stdin.readline() if source is None else source.readline()
        except OSError as e:
            raise TellmeError(f"standard input cannot be read ({e.strerror})") from e
        if not data:
            raise EOFError
        if isinstance(data, str):
            return checked(data, what)
        encoding = codecs.lookup(sys.stdin.encoding or "utf-8").name
        return decoded(data, what, "utf-8" if encoding == "ascii" else encoding)

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def _refuse(self, error: UserError) -> None:
        self.refused += 1
        self._say(f"tellme: {error}")
        self._record(error)

    def _record(self, error: TellmeError) -> None:
        """An object in the place of an answer's."""
        if self.as_json:
            print(json_line({"error": str(error)}), flush=True)

    def run(self) -> int:
        """Until /exit or the end of the input; Ctrl-C where there is no terminal.

        Returns
        -------
        int : messages and commands that were refused, 0 at a terminal, where somebody has seen it.

        Raises
        ------
        TellmeError : an answer failed; or there is no standard input.
        """
        if self.interactive:
            import readline  # noqa: F401 - line editing for input()

            how = "with its chat template" if self.session.templated else "continuing text (it has no chat template)"
            self._say(f"{how}; context {self.session.backend.context} positions; /help for commands")
        while True:
            try:
                line = self._read().strip()
            except EOFError:
                break
            except UserError as e:
                self._refuse(e)
                continue
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                self._say("\n(/exit or Ctrl-D to leave)")
                continue
            if line.startswith("/") and not line.startswith("//"):
                if not self._command(line):
                    break
            elif line:
                self._answer(line[1:] if line.startswith("//") else line)
        return 0 if self.interactive else self.refused

    def _command(self, line: str) -> bool:
        if line == "/exit":
            return False
        if line == "/reset":
            self.session.reset()
            self._say("new conversation")
        elif line == "/stats":
            self._say(describe_totals(self.session.totals, power_words(self.session, self.backend)))
        elif line == "/help":
            self._say(HELP)
        elif line == "/retry":
            self._answer(None)
        else:
            try:
                self._say(self._setting(*line.split(maxsplit=2)))
            except UserError as e:
                self._refuse(e)
        return True

    def _setting(self, name: str, what: str = "", value: str = "") -> str:
        """/save, /load and /set; what to say about it."""
        session = self.session
        if name in ("/save", "/load"):
            if not what:
                raise UserError(f"{name} needs the name of a file")
            path = Path(f"{what} {value}".strip())
            if name == "/save":
                session.save(path)
                return f"saved to {path}"
            return f"{session.load(path)} {'messages' if session.templated else 'tokens'} from {path}"
        if name != "/set":
            raise UserError(f"there is no command {name}; there are {COMMANDS}")
        if what:
            key = what.replace("-", "_")
            if key not in SETTINGS:
                raise UserError(f"there is no setting {what}; there are {', '.join(SETTINGS)}")
            try:
                number = SETTINGS[key](value)
            except ValueError:
                raise UserError(f"{what} takes a number, not {value!r}") from None
            session.sampling = replace(session.sampling, **{key: number})
        return ", ".join(f"{key} {getattr(session.sampling, key)}" for key in SETTINGS)

    def _answer(self, text: str | None) -> None:
        """Answers a message, or the last one again."""
        try:
            turn = self.session.retry() if text is None else self.session.ask(text)
        except UserError as e:
            self._refuse(e)
            return
        if turn.dropped:
            what = "messages" if self.session.templated else "tokens"
            self._say(f"(the context is full: the oldest {turn.dropped} {what} were left out)")
        with _stopping(turn):
            try:
                for piece in turn:
                    if not self.as_json:
                        print(piece, end="", flush=True)
            except TellmeError as e:
                self._record(e)
                raise
            finally:
                if not self.as_json:
                    print(flush=True)
        report = turn.report
        if report.stop == "context":
            self._say(f"(stopped: the context of {self.session.backend.context} positions is full)")
        elif report.stop == "interrupted":
            self._say("(stopped)")
        if self.as_json:
            print(self._json(turn), flush=True)
        elif self.interactive:
            self._say(f"[{describe(turn, self.session.backend.config, simulated=self.backend == 'sim')}]")

    def _json(self, turn: Turn) -> str:
        report = turn.report
        seconds = report.seconds - report.seconds_prefill
        return json_line(
            {
                "text": report.text,
                "new_ids": report.new_ids,
                "prompt_tokens": len(report.prompt_ids),
                "cached_tokens": turn.cached,
                "stop": report.stop,
                "first_token_s": round(report.seconds_prefill, 6),
                "tokens_per_s": round(report.decoded / seconds, 3) if report.decode and seconds > 0 else None,
                "drafted": report.drafted,
                "accepted": report.accepted,
                "tokens_per_pass": report.tokens_per_pass,
                "cycles_prefill": report.cycles_prefill,
                "cycles_decode": report.cycles_decode,
                "joules": turn.joules,
                "model": self.model,
                "backend": self.backend,
                "board": self.session.backend.config.name,
                "clock_hz": self.session.backend.config.clock_hz,
                "seconds": round(report.seconds, 6),
            }
        )
