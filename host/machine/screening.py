"""Which head a pass runs: every row, or candidates that a ternary copy of the head chooses; and how sure that choice is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tellme.golden import screen
from tellme.host.errors import UserError

MODES = ("full", "screened", "auto")
CANDIDATES = 256
"""Of a head lane, unless something else is asked for."""


def check_mode(mode: str | None) -> None:
    """Refuses what `--head` cannot be, with a UserError."""
    if mode is not None and mode not in MODES:
        raise UserError(f"--head must be {', '.join(MODES[:-1])} or {MODES[-1]}, not {mode!r}")


@dataclass(frozen=True, kw_only=True)
class HeadChoice:
    """The head of a run.

    Parameters
    ----------
    mode : 'full' scores every row; 'screened' only the candidates; 'auto' the candidates, and every row in a second pass where the
        best of them is not above their bound by `margin`.
    candidates : of a head lane.
    margin : of a screen that was calibrated; in units of a logit.

    Raises
    ------
    UserError : no such mode, or a number of candidates that there cannot be.
    """

    mode: str = "full"
    candidates: int = CANDIDATES
    margin: float = 0.0

    def __post_init__(self) -> None:
        check_mode(self.mode)
        n, most, multiple = self.candidates, screen.MAX_CANDIDATES, screen.MULTIPLE
        if n % multiple or not multiple <= n <= most:
            raise UserError(f"--candidates must be a multiple of {multiple} from {multiple} to {most}, not {n}")

    def wanted(self, lanes: int, vocab: int, entries: int) -> int:
        """Candidates of a pass with so many head lanes; 0, the full head, where they are not asked for or there cannot be any."""
        if self.mode == "full" or not lanes or screen.problem(self.candidates, lanes, vocab, entries):
            return 0
        return self.candidates

    def doubts(self, best: Sequence[np.float32], bound: Sequence[np.float32] | None) -> tuple[bool, ...]:
        """Of each head lane, whether a row that was left out may be larger than its best candidate."""
        if self.mode != "auto" or bound is None:
            return (False,) * len(best)
        return tuple(not float(a) - float(b) >= self.margin for a, b in zip(best, bound, strict=True))


FULL = HeadChoice()
"""Every row, always."""


def choose(
    name: str, ternary: screen.Screen | None, mode: str | None, candidates: int | None, vocab: int
) -> HeadChoice:
    """What `--head` and `--candidates` say of a model.

    Parameters
    ----------
    ternary : of the model, None: it has none; only what it says of itself counts.
    mode : None: 'auto' if the model has a calibrated ternary head, or one that is ternary itself, and else 'full'. Of the latter every mode's logits are exact:
        'full' gives every row's, 'screened' and 'auto' the candidates', and nothing is in doubt.

    Raises
    ------
    UserError : the model cannot be run so.
    """
    check_mode(mode)
    if mode is None:
        mode = "auto" if ternary is not None and (ternary.exact or ternary.margin > 0) else "full"
    if mode == "full":
        if candidates is not None:
            raise UserError("--candidates needs --head screened or auto")
        return FULL
    if ternary is None:
        raise UserError(f"{name}: has no ternary head; convert the checkpoint with --head screened")
    margin = float(ternary.margin)
    if mode == "auto" and not margin > 0 and not ternary.exact:
        raise UserError(
            f"{name}: its ternary head was not calibrated, so that nothing says when to fall back; take --head screened, or "
            "convert the checkpoint without --planes"
        )
    choice = HeadChoice(mode=mode, candidates=CANDIDATES if candidates is None else candidates, margin=margin)
    if 2 * choice.candidates > vocab:
        most = vocab // 2 // screen.MULTIPLE * screen.MULTIPLE
        if candidates is not None or most < screen.MULTIPLE:
            raise UserError(
                f"{name}: {choice.candidates} candidates are more than half of its vocabulary of {vocab}; take --head full, "
                f"or at most {most} candidates"
            )
        return HeadChoice(mode=mode, candidates=most, margin=margin)
    return choice
