"""Encodes the texts with `transformers` from every folder and writes the ids; `make oracle` runs this."""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

import sentencepiece
import transformers

from tests.models import DEMO
from tests.oracle.tokenizer_cases import MODELS, PIECES, TEXTS, VECTORS, cases, write


def train(prefix: bool) -> bytes:
    """A sentencepiece model of the demo's held-out stories."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((DEMO.parent / "heldout.txt").read_text(encoding="utf-8").splitlines()),
        model_writer=out,
        vocab_size=PIECES,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        minloglevel=2,
    )
    return out.getvalue()


def main() -> int:
    """Writes the models that are not there yet and the vectors: per folder the ids of every text."""
    transformers.logging.set_verbosity_error()
    for name, path in MODELS.items():
        if not path.exists():
            path.write_bytes(train(name == "prefix"))
    vectors: dict[str, list[list[int]]] = {}
    for name, files in cases().items():
        with tempfile.TemporaryDirectory() as place:
            folder = write(Path(place) / "m", files)
            (folder / "config.json").write_text(json.dumps({"model_type": "bitnet", "vocab_size": 1024}))
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            vectors[name] = [tokenizer(text).input_ids for text in TEXTS]
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(ids)}" for name, ids in vectors.items())
    head = json.dumps({"versions": f"transformers {transformers.__version__}", "texts": TEXTS}, ensure_ascii=False)
    VECTORS.write_text(f'{head[:-1]}, "ids": {{\n{rows}\n}}}}\n', encoding="utf-8")
    print(f"{VECTORS}: {VECTORS.stat().st_size} bytes, {len(vectors)} folders")
    return 0


if __name__ == "__main__":
    sys.exit(main())
