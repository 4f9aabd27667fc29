"""Mutated GGUF files: whatever a file says, reading it ends in a model or in one line."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

from host.errors import UserError
from host.gguf import read_gguf
from host.tokenizer import Tokenizer
from tests.host.gguf_support import model, write_gguf

SLOW = 2.0
"""Seconds that no file may take; most take milliseconds."""


def _byte_level(w: gguf.GGUFWriter) -> None:
    letters = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]
    pairs = [("t", "h"), ("th", "e"), ("Ġ", "a"), ("i", "n"), ("a", "n")]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("llama-bpe")
    w.add_token_list([*letters, *("".join(p) for p in pairs), "<s>", "</s>", "<u>"])
    w.add_token_types([1] * (len(letters) + len(pairs)) + [3, 3, 4])
    w.add_token_merges([" ".join(p) for p in pairs])
    w.add_bos_token_id(len(letters) + len(pairs))
    w.add_eos_token_id(len(letters) + len(pairs) + 1)
    w.add_chat_template("{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}")


def _sentencepiece(w: gguf.GGUFWriter) -> None:
    letters = ["\u2581", *map(chr, range(97, 123))]
    words = ["th", "the", "\u2581a", "in", "an"]
    w.add_tokenizer_model("llama")
    w.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(0, 256, 16)), *letters, *words])
    n = len(letters) + len(words)
    w.add_token_scores([0.0] * 19 + [-float(i) for i in range(n)])
    w.add_token_types([2, 3, 3] + [6] * 16 + [1] * n)
    w.add_bos_token_id(1)


def files(folder: Path) -> list[bytes]:
    """One small file of each kind."""
    shape: dict[str, Any] = dict(layers=1, hidden=128, heads=2, kv_heads=1, head_dim=64, ffn=128, vocab=112)
    small, norms = model(**shape), {"attn_sub_norm": False, "ffn_sub_norm": False, "activation": "silu"}
    tq: dict[str, Any] = shape | {"hidden": 256, "head_dim": 128, "ffn": 256}
    out = [
        write_gguf(folder / "a", small, embedding=T.Q8_0, vocabulary=_byte_level),
        write_gguf(
            folder / "b",
            small,
            "bitnet",
            embedding=T.F16,
            vocabulary=_sentencepiece,
            unit_scales=True,
            arch__hidden_activation="silu",
        ),
        write_gguf(
            folder / "c", model(**tq, **norms, tied=False), "llama", T.TQ2_0, embedding=T.Q8_0, vocabulary=_byte_level
        ),
        write_gguf(folder / "d", model(**tq, **norms), "llama", T.TQ1_0, embedding=T.F16, vocabulary=_sentencepiece),
    ]
    for path in out:
        list(read_gguf(path).weights.layers)
    return [path.read_bytes() for path in out]


def mutate(data: bytes, header: int, rng: np.random.Generator) -> bytes:
    """A damaged copy: bytes, numbers of every width, pieces moved, doubled, cut out, zeroed; mostly in the header."""
    out = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        if not out:
            break
        most = min(header, len(out)) if rng.random() < 0.7 else len(out)
        at = int(rng.integers(0, most))
        n = int(rng.integers(1, 65))
        match int(rng.choice([0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 7, 8])):
            case 0:
                out[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                out[at] = int(rng.integers(0, 256))
            case 2 | 3:
                width = int(rng.choice([1, 2, 4, 8]))
                edges = [
                    0,
                    1,
                    2,
                    3,
                    127,
                    128,
                    255,
                    1 << 16,
                    (1 << 31) - 1,
                    1 << 31,
                    (1 << 32) - 1,
                    1 << 40,
                    (1 << 63) - 1,
                    (1 << 64) - 1,
                ]
                value = edges[int(rng.integers(0, len(edges)))] & (1 << 8 * width) - 1
                out[at : at + width] = value.to_bytes(width, "little")
            case 4:
                del out[at : at + n]
            case 5:
                out[at:at] = out[at : at + n]
            case 6:
                out[at : at + n] = bytes(n)
            case 7:
                other = int(rng.integers(0, most))
                out[at : at + n] = out[other : other + n]
            case _:
                del out[int(rng.integers(0, len(out))) :]
    return bytes(out)


def _kind(message: str) -> str:
    """A refusal without its names and numbers."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|tensor \S+|[\d.,]+", "#", message.split(": ", 1)[-1])[:70]


def run(folder: Path, count: int, seed: int, progress: Callable[[int], None] | None = None) -> Counter[str]:
    """Reads `count` damaged files whole; returns how they ended: 'read', or a kind of refusal.

    Raises
    ------
    Exception : anything that is not a UserError of one line, or a file that takes too long; the file is left in `folder`.
    """
    rng = np.random.default_rng(seed)
    originals = files(folder)
    headers = [data.rindex(b"weight") + 64 for data in originals]
    ends: Counter[str] = Counter()
    path = folder / "fuzz.gguf"
    for i in range(count):
        k = i % len(originals)
        path.write_bytes(mutate(originals[k], headers[k], rng))
        start = time.process_time()
        try:
            checkpoint = read_gguf(path)
            tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.weights.spec.vocab)
            for work in (
                lambda c=checkpoint: list(c.weights.layers),
                lambda t=tokenizer: t.encode("the <s> an\n"),
                lambda t=tokenizer: t.encode_chat([{"role": "user", "content": "the"}]),
            ):
                try:
                    work()
                except UserError as e:
                    assert "\n" not in str(e), str(e)
            ends["read"] += 1
        except UserError as e:
            assert "\n" not in str(e), str(e)
            ends[_kind(str(e))] += 1
        seconds = time.process_time() - start
        assert seconds < SLOW, f"{path}: mutation {i} of seed {seed} took {seconds:.1f} s"
        if progress is not None:
            progress(i)
    return ends
