"""How a model wants to be sampled: generation_config.json beside its weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tellme.host.errors import UserError
from tellme.host.text.sampling import Sampling

FILE = "generation_config.json"
OTHERWISE = Sampling(temperature=1.0)
"""Of a model that says nothing: what OpenAI's interface takes."""


def sampling_of(model: Path, otherwise: Sampling = OTHERWISE) -> Sampling:
    """Sampling that a checkpoint's folder asks for, `otherwise` if it says nothing.

    Raises
    ------
    UserError : the file is there and cannot be used.
    """
    path = model / FILE
    if not path.is_file():
        return otherwise
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path}: cannot be read ({e})") from e
    if not isinstance(data, dict):
        raise UserError(f"{path}: is not a JSON object")
    if data.get("do_sample") is False:
        return Sampling(repetition_penalty=_number(path, data, "repetition_penalty", 1.0))
    names = ("temperature", "top_p", "min_p", "repetition_penalty")
    if not data.get("do_sample") and not any(data.get(n) is not None for n in (*names, "top_k")):
        return otherwise
    # What the file leaves out is as in transformers.
    standard = Sampling(temperature=1.0)
    values = {n: _number(path, data, n, getattr(standard, n)) for n in names}
    try:
        return replace(standard, **values, top_k=int(_number(path, data, "top_k", 0)))  # type: ignore[arg-type]
    except UserError as e:
        raise UserError(f"{path}: {e}") from e


def _number(path: Path, data: dict[str, Any], name: str, otherwise: float) -> float:
    value = data.get(name)
    if value is None:
        return otherwise
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 3e38:  # nor NaN
        raise UserError(f"{path}: {name} is no number")
    return float(value)
