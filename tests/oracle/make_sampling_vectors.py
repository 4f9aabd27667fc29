"""Takes logits through the samplers of `transformers` and writes the probabilities; `make oracle` runs this."""

from __future__ import annotations

import sys

import numpy as np
import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tellme.host.text.sampling import Sampling
from tests.oracle.sampling_cases import SETTINGS, VECTORS, logits, said


def processors(s: Sampling) -> list[LogitsProcessor]:
    """In the order of `GenerationMixin._get_logits_processor`."""
    out: list[LogitsProcessor] = []
    if s.repetition_penalty != 1.0:
        out.append(RepetitionPenaltyLogitsProcessor(s.repetition_penalty))
    if s.temperature != 1.0:
        out.append(TemperatureLogitsWarper(s.temperature))
    if s.top_k:
        out.append(TopKLogitsWarper(s.top_k))
    if s.top_p < 1.0:
        out.append(TopPLogitsWarper(s.top_p))
    if s.min_p > 0.0:
        out.append(MinPLogitsWarper(s.min_p))
    return out


def main() -> int:
    """Writes the vectors: float32[cases, TOKENS]."""
    probabilities = []
    for case, s in enumerate(SETTINGS):
        scores = torch.from_numpy(logits(case))[None]
        for process in processors(s):
            scores = process(torch.tensor([said(case)]), scores)
        probabilities.append(torch.softmax(scores, dim=-1)[0].numpy())
    np.savez_compressed(VECTORS, probabilities=np.stack(probabilities))
    print(f"{VECTORS}: {VECTORS.stat().st_size} bytes, {len(SETTINGS)} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
