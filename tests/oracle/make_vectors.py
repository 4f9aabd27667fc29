"""Runs the demo model in PyTorch (transformers' BitNet, float32) and writes the reference vectors that tests read.

`make oracle` installs PyTorch and runs this, and then `make_families` and `make_sink`. The vectors: for every position of every held-out story, the negative
log-likelihood of the next token, the most likely token and its lead over the second; for the first tokens of the first
story, the residual stream, attention output and gated features of every layer, and the logits.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # unpacking weights would be compiled, for minutes

import numpy as np
import torch
import transformers

from tellme.host.talk.scoring import TorchScorer, score, windows
from tests.models import DEMO
from tests.oracle.heldout import TAPPED, VECTORS, fingerprint, stories

LIMIT = 300_000
"""Bytes that the vectors may take in the repository."""


def main() -> int:
    """Writes the vectors; prints what they say."""
    torch.manual_seed(0)
    torch._dynamo.config.disable = True
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
    vectors: dict[str, list[np.ndarray]] = {"nll": [], "best": [], "lead": []}
    with torch.no_grad():
        for ids in stories():
            logits = model(torch.from_numpy(ids)[None]).logits[0, :-1]
            targets = torch.from_numpy(ids)[1:]
            top = logits.topk(2)
            vectors["nll"].append(torch.nn.functional.cross_entropy(logits, targets, reduction="none").numpy())
            vectors["best"].append(top.indices[:, 0].numpy().astype(np.int16))
            vectors["lead"].append((top.values[:, 0] - top.values[:, 1]).numpy())
        taps = tap(model, stories()[0][:TAPPED])
    VECTORS.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        VECTORS,
        fingerprint=fingerprint(),
        versions=f"torch {torch.__version__}, transformers {transformers.__version__}",
        **{name: np.concatenate(parts) for name, parts in vectors.items()},
        **taps,
    )
    check_scorer(np.concatenate(vectors["nll"]))
    size, nll = VECTORS.stat().st_size, np.concatenate(vectors["nll"])
    print(f"{VECTORS}: {size} bytes, {len(nll)} positions, mean NLL {nll.mean():.5f}")
    if size > LIMIT:
        print(f"more than {LIMIT} bytes: record fewer layers", file=sys.stderr)
        return 1
    return 0


def check_scorer(nll: np.ndarray) -> None:
    """Holds `tellme eval --reference-backend torch`, which caches keys and takes pieces, to whole sequences."""
    scorer = TorchScorer(DEMO)
    parts = [score(ids.tolist(), scorer, None, windows(len(ids), 1 << 12, 1))[0] for ids in stories()]
    error = np.abs(np.concatenate([p.nll for p in parts]) - nll)
    print(f"tellme eval: NLL off by {np.median(error):.1e} (median), {error.mean():.1e} (mean)")
    # The order of float sums differs, and with it int8 codes at rounding ties.
    assert np.median(error) < 1e-4 and error.mean() < 5e-3, error


def tap(model: torch.nn.Module, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Layers of one sequence: `<layer>.x`, `.attention` (before the sub-norm), `.gated` (likewise), and `logits`."""
    out: dict[str, np.ndarray] = {}
    hooks = []

    def keep(name: str, inputs: bool) -> object:
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
            tensor = args[0] if inputs else (result[0] if isinstance(result, tuple) else result)
            out[name] = tensor.reshape(len(ids), -1).numpy().copy()

        return hook

    for i, layer in enumerate(model.model.layers):
        for module, name, inputs in (
            (layer, f"{i}.x", False),
            (layer.self_attn.attn_sub_norm, f"{i}.attention", True),
            (layer.mlp.ffn_sub_norm, f"{i}.gated", True),
        ):
            hooks.append(module.register_forward_hook(keep(name, inputs)))
    out["logits"] = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    for h in hooks:
        h.remove()
    return out


if __name__ == "__main__":
    from tests.oracle import make_families, make_sink

    sys.exit(main() or make_families.main() or make_sink.main())
