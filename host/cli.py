"""The `tellme` command: gives the commands of host/commands/ their names, and reports what they raise.

Every refused input is one line on stderr and exit code 2, a failed check 1.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from tellme.host.commands import (
    bench,
    boards,
    build,
    cache,
    chat,
    config,
    convert,
    doctor,
    evaluate,
    explore,
    info,
    plan,
    report,
    run,
    serve,
    synth,
    tune,
    verilog,
    view,
)
from tellme.host.errors import TellmeError
from tellme.host.provenance import commit, given, version
from tellme.host.text.streams import drop_output, finish_output, output_failed, prepare_streams


def _fail(message: object, code: int) -> NoReturn:
    with contextlib.suppress(OSError):
        print(f"tellme: {message}", file=sys.stderr, flush=True)
    raise SystemExit(code)


_FAILURES = (
    ("tellme.sim.runner", "SimulationError", "the simulation failed: ", 1),
    ("tellme.hw.cache", "CacheError", "", 2),
)
"""Errors of packages that are not imported here: module, class, words in front, exit code."""


class _Group(TyperGroup):
    """Reports errors, usage errors too, in one line."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        found = args[0] if args else kwargs.get("args")
        given(sys.argv[1:] if found is None else found)
        prepare_streams()
        try:
            code = super().main(*args, **kwargs)
            finish_output()
        except TellmeError as e:
            _fail(e, e.exit_code)
        except TyperException as e:
            if not e.format_message():  # help was shown because nothing was asked for
                raise SystemExit(e.exit_code) from None
            _fail(f"{' '.join(e.format_message().split())} (see tellme --help)", e.exit_code)
        except (KeyboardInterrupt, typer.Abort):
            _fail("interrupted", 130)
        except BrokenPipeError:
            drop_output()  # whoever read it has gone
            raise SystemExit(1) from None
        except OSError as e:
            if not output_failed(e):
                raise
            drop_output()
            _fail(f"standard output cannot be written ({e.strerror})", 1)
        except RuntimeError as e:
            for module, name, what, exit_code in _FAILURES:
                if isinstance(e, getattr(sys.modules.get(module), name, ())):
                    _fail(f"{what}{e}", exit_code)
            raise
        if code == 130:  # typer turns Ctrl-C into this code, without a word
            _fail("interrupted", 130)
        raise SystemExit(code if isinstance(code, int) else 0)


app = typer.Typer(
    cls=_Group,
    help="Ternary language models on a generated accelerator.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tellme {version()}" + (f" ({commit()})" if commit() else ""))
        raise typer.Exit


@app.callback()
def _options(
    shown: Annotated[
        bool, typer.Option("--version", help="Print version and commit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


for _name, _module in {
    "run": run,
    "eval": evaluate,
    "chat": chat,
    "serve": serve,
    "doctor": doctor,
    "tune": tune,
    "convert": convert,
    "info": info,
    "bench": bench,
    "plan": plan,
    "explore": explore,
    "report": report,
    "view": view,
    "verilog": verilog,
    "boards": boards,
    "build": build,
    "synth": synth,
}.items():
    app.command(_name)(_module.command)
app.add_typer(cache.app, name="cache")
app.add_typer(config.app, name="config")


def main() -> None:
    """Entry point of the `tellme` command."""
    app()


if __name__ == "__main__":
    main()
