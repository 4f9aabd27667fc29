"""The golden model as a back end, and one that runs two back ends and compares every logit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tellme.golden.config import AcceleratorConfig
from tellme.golden.kv import EIGHT, CacheFormat
from tellme.golden.model import GoldenModel, GoldenPass, ModelWeights
from tellme.host.checkpoints.checkpoint import golden_errors, is_checkpoint, open_checkpoint
from tellme.host.errors import CheckError
from tellme.host.image.file import Image
from tellme.host.image.model import Model
from tellme.host.machine.passes import Backend, Cache, Pass, PassResult
from tellme.host.machine.program import check_fits, check_slots, checked_context


class GoldenBackend(Backend):
    """The golden model behind the interface of an accelerator.

    Parameters
    ----------
    weights : the model.
    config : the accelerator it stands for: lanes of a pass, limits, context.
    slots : cache slots.
    context : positions of a slot; all that the accelerator would allow if None.
    kv : elements of the cache.

    Attributes
    ----------
    head_inputs, head_scale : what the head multiplied in the latest `prefill`, as in `golden.model.GoldenPass`.
    """

    head_inputs: NDArray[np.int8] | None = None
    head_scale: NDArray[np.float32] | None = None

    def __init__(
        self,
        weights: ModelWeights,
        config: AcceleratorConfig,
        *,
        slots: int = 1,
        context: int | None = None,
        kv: CacheFormat = EIGHT,
    ):
        check_fits(weights.spec, config, "the model", kv)
        check_slots(slots)
        self.config = config
        self.slots = slots
        self.spec = weights.spec
        self.vocab = weights.spec.vocab
        self.group = weights.spec.heads // weights.spec.kv_heads
        self.can_screen = weights.screen is not None
        self.kv = kv
        self.context = checked_context(weights.spec, config, "the model", context, kv)
        cut = replace(weights, spec=replace(weights.spec, max_context=self.context))
        with golden_errors("the model"):
            self.model = GoldenModel(cut, config, slots, kv)

    def _pass(self, given: Pass) -> PassResult:
        with golden_errors("golden model"):
            result = self.model.run_pass(
                given.tokens, given.positions, given.slots, given.head, candidates=given.candidates
            )
        return self._result(result, given.head[0], given.write_logits)

    @staticmethod
    def _result(result: GoldenPass, first: int, logits: bool) -> PassResult:
        best = [int(i) for i in result.best]
        chosen, bound = result.candidates, result.bound
        places = best if chosen is None else [int(np.searchsorted(c, b)) for c, b in zip(chosen, best, strict=True)]
        return PassResult(
            head_first=first,
            head_count=len(best),
            best_index=tuple(best),
            best_value=tuple(result.logits[i, b] for i, b in enumerate(places)),
            logits=result.logits if logits else None,
            candidates=chosen if logits else None,
            bound=None if bound is None else tuple(bound),
        )

    def prefill(
        self, tokens: Sequence[int], *, start: int = 0, slot: int = 0, all_logits: bool = False, logits: bool = False
    ) -> list[PassResult]:
        """As `Backend.prefill`, but in passes wider than the accelerator's, which are faster and give the same: one result."""
        self._check_prompt(tokens, start)
        wanted = 0 if all_logits else self._candidates(1)

        def run(candidates: int) -> GoldenPass:
            with golden_errors("golden model"):
                return self.model.prefill(tokens, slot, start=start, all_logits=all_logits, candidates=candidates)

        first = 0 if all_logits else len(tokens) - 1
        found = run(wanted)
        self.head_inputs, self.head_scale = found.head_inputs, found.head_scale
        result = self._result(found, first, all_logits or logits)
        if wanted:
            result = self._certain(result, lambda: self._result(run(0), first, logits))
        return [result]

    def read_cache(self, slot: int, positions: int) -> Cache:
        """As `Backend.read_cache`."""
        self._check_cache(slot, positions)
        parts = [[a[:, :positions] for a in self.model.cache(slot, i)] for i in range(self.model.spec.layers)]
        return Cache(*(np.stack(arrays) for arrays in zip(*parts, strict=True)))

    def write_cache(self, slot: int, cache: Cache) -> None:
        """As `Backend.write_cache`."""
        self._check_cache(slot, cache.positions)
        cache.check(self.model.spec, self.kv)
        for i in range(self.model.spec.layers):
            self.model.set_cache(slot, i, cache.k[i], cache.k_scales[i], cache.v[i], cache.v_scales[i])


class CheckedBackend(Backend):
    """Runs every pass on two back ends, with the head on every lane, and compares every logit bit by bit.

    Parameters
    ----------
    tested : gives the results and counters.
    reference : what they must equal.

    Raises (in a pass)
    ------------------
    CheckError : at the first logit or arg-max that differs, with pass, lane, token position, index and both values.
    """

    def __init__(self, tested: Backend, reference: Backend):
        self.tested, self.reference = tested, reference
        self.config, self.vocab, self.group = tested.config, tested.vocab, tested.group
        self.context, self.slots, self.spec, self.kv = tested.context, tested.slots, tested.spec, tested.kv
        self.can_screen = tested.can_screen
        self.passes = 0
        self.logits = 0
        """Passes and logits compared so far."""

    def _pass(self, given: Pass) -> PassResult:
        whole = replace(given, head=(0, given.lanes), write_logits=True)
        if given.candidates and given.candidates * given.lanes > self.config.screen_entries:
            whole = replace(given, write_logits=True)
        begin = whole.head[0]
        got, want = self.tested.run_pass(whole), self.reference.run_pass(whole)
        assert got.logits is not None and want.logits is not None
        self._compare_candidates(given, begin, got, want)
        a, b = got.logits.view(np.uint32), want.logits.view(np.uint32)
        if a.shape != b.shape:
            raise CheckError(f"pass {self.passes}: logits have shape {a.shape}, the golden model's {b.shape}")
        for lane, index in np.argwhere(a != b)[:1]:
            token = index if want.candidates is None else want.candidates[lane, index]
            raise CheckError(
                f"pass {self.passes}, lane {lane}, position {given.positions[begin + lane]}, vocabulary index {token}: logit "
                f"{got.logits[lane, index]!r} ({a[lane, index]:#010x}) differs from the golden model's "
                f"{want.logits[lane, index]!r} ({b[lane, index]:#010x}); "
                f"{int((a != b).sum())} logits of this pass differ"
            )
        for lane in range(whole.head[1]):
            mine = (got.best_index[lane], int(np.float32(got.best_value[lane]).view(np.uint32)))
            theirs = (want.best_index[lane], int(np.float32(want.best_value[lane]).view(np.uint32)))
            if mine != theirs:
                raise CheckError(
                    f"pass {self.passes}, lane {lane}, position {given.positions[begin + lane]}: arg-max is token {mine[0]} "
                    f"({mine[1]:#010x}), the golden model's is token {theirs[0]} ({theirs[1]:#010x})"
                )
        self.passes += 1
        self.logits += a.size
        first, count = given.head
        kept = slice(first - begin, first - begin + count)
        return replace(
            got,
            head_first=first,
            head_count=count,
            best_index=got.best_index[kept],
            best_value=got.best_value[kept],
            logits=got.logits[kept] if given.write_logits else None,
            candidates=None if got.candidates is None or not given.write_logits else got.candidates[kept],
            bound=None if got.bound is None else got.bound[kept],
        )

    def _compare_candidates(self, given: Pass, begin: int, got: PassResult, want: PassResult) -> None:
        """Rows and bounds of a screened head."""
        if want.candidates is None or want.bound is None:
            return
        assert got.candidates is not None and got.bound is not None
        for lane, (mine, theirs) in enumerate(zip(got.candidates, want.candidates, strict=True)):
            where = f"pass {self.passes}, lane {lane}, position {given.positions[begin + lane]}"
            if not np.array_equal(mine, theirs):
                row = np.setxor1d(mine, theirs)[0]
                who = (
                    ("the accelerator", "the golden model") if row in mine else ("the golden model", "the accelerator")
                )
                raise CheckError(f"{where}: row {row} is a candidate of {who[0]} and not of {who[1]}")
            if got.bound[lane].tobytes() != want.bound[lane].tobytes():
                raise CheckError(
                    f"{where}: bound {got.bound[lane]!r} differs from the golden model's {want.bound[lane]!r}"
                )

    def read_cache(self, slot: int, positions: int) -> Cache:
        """Of the tested one."""
        return self.tested.read_cache(slot, positions)

    def write_cache(self, slot: int, cache: Cache) -> None:
        """Into both."""
        self.tested.write_cache(slot, cache)
        self.reference.write_cache(slot, cache)

    def close(self) -> None:
        """Closes both."""
        self.tested.close()
        self.reference.close()


def load_weights(path: Path, config: AcceleratorConfig, *, latent: bool = False) -> ModelWeights:
    """Weights of a checkpoint, or of an image made for `config`'s beats."""
    if is_checkpoint(path):
        return open_checkpoint(path, latent=latent).weights
    return Model(Image(path), config).weights()
