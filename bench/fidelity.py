"""The families' tiny models, plain and with outliers, against PyTorch in float32: `python -m bench.fidelity`, for docs/measurements/fidelity.md.

Needs the packages of `make oracle`. Outliers are put into the checkpoint, so that PyTorch reads them too.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from tellme.golden.config import KV260
from tellme.golden.model import GoldenModel, ModelWeights
from tellme.host.checkpoints.checkpoint import read_checkpoint, with_int8_inputs
from tellme.host.talk.scoring import TorchScorer, log_softmax
from tests.oracle.families import FAMILIES, checkpoint, vectors

SEQUENCES = 4
VARIANTS = {
    "plain": ("", 1.0),
    "gain x50": ("input_layernorm.weight", 50.0),
    "channel x30": ("embed_tokens.weight", 30.0),
    "channel x300": ("embed_tokens.weight", 300.0),
}
"""What is multiplied, in feature 3, by how much."""
NOT_IN_TRANSFORMERS = "first-bitnet"
"""transformers reads it as a LLaMA without sub-norms."""


def _spoil(folder: Path, end: str, factor: float) -> None:
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, values in tensors.items():
            if end and name.endswith(end):
                values[..., 3] *= factor
        save_file(tensors, path, metadata={"format": "pt"})


def _golden(weights: ModelWeights, ids: list[int]) -> NDArray[np.float64]:
    model, out = GoldenModel(weights, KV260), []
    for i in range(0, len(ids), KV260.lanes):
        part = ids[i : i + KV260.lanes]
        out.append(model.run_pass(part, range(i, i + len(part)), [0] * len(part)).logits)
    return log_softmax(np.concatenate(out))


def main() -> None:
    """Prints a row of the table for each model, variant and kind of embedding row."""
    for family in FAMILIES:
        for variant, (end, factor) in VARIANTS.items():
            if family == NOT_IN_TRANSFORMERS:
                continue
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name) / "m"
                shutil.copytree(checkpoint(family), folder)
                _spoil(folder, end, factor)
                exact, torch = read_checkpoint(folder), TorchScorer(folder)
                sequences = [[int(i) for i in ids] for ids in np.load(vectors(family))["ids"][:SEQUENCES]]
                want = [log_softmax(np.asarray(torch.feed(ids, 0, True))) for ids in sequences]
                for rows, weights in (("exact", exact.weights), ("int8", with_int8_inputs(exact).weights)):
                    got = [_golden(weights, ids) for ids in sequences]
                    a, b = np.concatenate(want), np.concatenate(got)
                    kl = (np.exp(a) * (a - b)).sum(-1)
                    nll = [
                        -np.mean([x[np.arange(len(i) - 1), i[1:]].mean() for x, i in zip(xs, sequences, strict=True)])
                        for xs in (want, got)
                    ]
                    same = float((a.argmax(-1) == b.argmax(-1)).mean())
                    print(
                        f"| {family} | {variant} | {rows} | {nll[1] / nll[0] - 1:+.2%} | {same:.2%} | {kl.mean():.2e} | {kl.max():.2e} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
