"""Speed and memory of the golden model at a published shape: ``python -m bench.golden_speed SHAPE`` prints JSON."""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from dataclasses import replace
from typing import Any

import numpy as np

from tellme.golden.config import KV260
from tellme.golden.model import ModelSpec
from tellme.golden.shapes import SHAPES
from tellme.golden.ternary import threads
from tellme.host.checkpoints.synthetic import random_weights
from tellme.host.machine.backends import GoldenBackend

WARM = 16
"""Tokens taken before the clock starts: threads start, the allocator finds its sizes."""


def measure(spec: ModelSpec, prompt: int, new: int) -> dict[str, Any]:
    """Prefill of a prompt in an empty cache, then greedy decoding.

    Tokens a second by the wall clock, processor seconds a token (of all threads), peak memory of the process in GiB,
    load averages of the machine (one minute) before and after.
    """
    before = os.getloadavg()[0]
    backend = GoldenBackend(random_weights(spec, seed=1), KV260)
    ids = np.random.default_rng(1).integers(0, spec.vocab, prompt).tolist()
    backend.prefill(ids[:WARM])
    clock, cpu = time.perf_counter(), time.process_time()
    result = backend.prefill(ids)[-1]
    prefill, prefill_cpu = time.perf_counter() - clock, time.process_time() - cpu
    clock, cpu = time.perf_counter(), time.process_time()
    for i in range(new):
        result = backend.decode(result.best_index[0], prompt + i)
    decode, decode_cpu = time.perf_counter() - clock, time.process_time() - cpu
    return {
        "prompt": prompt,
        "new": new,
        "prefill_tokens_per_s": prompt / prefill,
        "prefill_cpu_s_per_token": prefill_cpu / prompt,
        "decode_tokens_per_s": new / decode,
        "decode_cpu_s_per_token": decode_cpu / new,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "cores": os.cpu_count(),
        "threads": threads(),
        "load": [before, os.getloadavg()[0]],
    }


def main() -> None:
    """Measures one shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=16, help="tokens decoded behind it")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has, for profiles")
    arguments = parser.parse_args()
    spec = SHAPES[arguments.shape]
    if arguments.layers:
        spec = replace(spec, layers=arguments.layers)
    print(json.dumps(measure(spec, arguments.prompt, arguments.new)))


if __name__ == "__main__":
    main()
