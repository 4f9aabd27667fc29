"""A cache slot in a file: the tokens of a prompt with their keys and values, so that they need not be computed again.

The file is NumPy's .npz: `head`, JSON {kind, version, model, kv}; `tokens`, int64; `k`, `v`, `k_scales`, `v_scales` as `Cache` has them. The archive has a checksum of
every part. `model` is the fingerprint of the image that the keys were computed with, `kv` the cache's elements, as
`--kv` is given them, with ` --hadamard` behind where keys are turned.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

import numpy as np

from tellme.host.errors import UserError
from tellme.host.image.model import Model
from tellme.host.machine.passes import Cache
from tellme.host.places import replacing
from tellme.host.talk.engine import Engine

KIND, VERSION = "tellme prompt cache", 2
PARTS = {"k": np.int8, "k_scales": np.float32, "v": np.int8, "v_scales": np.float32}


def fingerprint(model: Model) -> str:
    """Of an image: a checksum of the checksums of its sections and of its shape."""
    sections = sorted((s.name, s.crc32) for s in model.image.sections.values())
    return f"{zlib.crc32(json.dumps([sections, repr(model.spec)]).encode()):08x}"


def save(path: Path, model: Model, engine: Engine) -> int:
    """Writes the slot that holds most.

    Returns
    -------
    int : how many tokens that is; 0: nothing is held, and no file is written.

    Raises
    ------
    UserError : the file cannot be written.
    """
    slots = engine.scheduler.slots
    most = max(range(len(slots)), key=lambda i: (slots[i].used, len(slots[i].tokens)))
    tokens = slots[most].tokens
    if not tokens:
        return 0
    cache = engine.backend.read_cache(most, len(tokens))
    kv = engine.backend.kv.options
    head = json.dumps({"kind": KIND, "version": VERSION, "model": fingerprint(model), "kv": kv}).encode()
    with replacing(path) as whole, whole.open("wb") as file:
        np.savez(
            file,
            head=np.frombuffer(head, np.uint8),
            tokens=np.array(tokens, np.int64),
            **{name: getattr(cache, name) for name in PARTS},
        )
    return len(tokens)


def load(path: Path, model: Model, engine: Engine) -> int:
    """Puts a file's keys and values into the first slot, if they fit the context.

    Returns
    -------
    int : how many tokens the slot holds now.

    Raises
    ------
    UserError : the file cannot be read, is damaged, is none of these, or is another model's; or it holds more than the context.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (bad := archive.testzip()) is not None:
                raise UserError(f"{path}: is damaged (checksum of {bad}); delete it, it will be made again")
        with np.load(path, allow_pickle=False) as found:
            head = json.loads(bytes(found["head"]))
            if not isinstance(head, dict) or head.get("kind") != KIND:
                raise UserError(f"{path}: is no prompt cache")
            if head.get("version") != VERSION:
                raise UserError(
                    f"{path}: has version {head.get('version')!r}, this tellme reads {VERSION}; delete it, it will be made again"
                )
            if head.get("model") != fingerprint(model):
                raise UserError(f"{path}: was made with another model or for another board; give another file")
            if head.get("kv") != (kv := engine.backend.kv.options):
                raise UserError(
                    f"{path}: was made with --kv {head.get('kv')}, not {kv}; take that, or give another file"
                )
            tokens = found["tokens"]
            parts = {name: found[name] for name in PARTS}
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e})") from e
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, zlib.error) as e:
        raise UserError(f"{path}: is no prompt cache ({' '.join(str(e).split())})") from e
    if tokens.dtype != np.int64 or tokens.ndim != 1 or any(parts[n].dtype != kind for n, kind in PARTS.items()):
        raise UserError(f"{path}: is no prompt cache (wrong types)")
    backend = engine.backend
    if not len(tokens) or len(tokens) > backend.context:
        raise UserError(
            f"{path}: holds {len(tokens)} tokens, the context holds {backend.context}; take a larger --context"
        )
    if (
        tokens.min() < 0
        or tokens.max() >= backend.vocab
        or any(a.ndim < 3 or a.shape[2] != len(tokens) for a in parts.values())
    ):
        raise UserError(f"{path}: is no prompt cache (its parts do not belong together)")
    backend.write_cache(0, Cache(**parts))
    engine.scheduler.slots[0].tokens = tokens.tolist()
    return len(tokens)
