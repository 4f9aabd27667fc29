"""The held-out stories as token sequences, and what identifies the model and text that vectors were made of."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tests.models import DEMO

TEXT = DEMO.parent / "heldout.txt"
VECTORS = Path(__file__).parent / "vectors" / "demo.npz"
TAPPED = 12
"""Tokens of the first story whose layers are recorded."""

BEGIN, END = "<s>", "</s>"


def stories() -> list[NDArray[np.int64]]:
    """Tokens of each story (a line of the text), with the begin and end of a document."""
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    begin, end = tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END)
    lines = [line for line in TEXT.read_text(encoding="utf-8").splitlines() if line]
    return [np.array([begin, *tokenizer.encode(line, add_special_tokens=False).ids, end]) for line in lines]


def fingerprint() -> str:
    """Hash of the model, its tokenizer and the text."""
    digest = hashlib.sha256()
    for path in (DEMO / "model.safetensors", DEMO / "config.json", DEMO / "tokenizer.json", TEXT):
        digest.update(path.read_bytes())
    return digest.hexdigest()
