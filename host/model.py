"""A model in an image: what the driver loads, the program compiler measures and the golden model can be fed with.

Sections of an image, in the order of the program (N is a layer):

| section | content | `info` |
|---|---|---|
| `input_norm` | gain of the first norm | gain_beats |
| `N.qkv` | QKV matrix | matrix; scales Q, K, V |
| `N.attention` | gain of the attention sub-norm; absent if there is none | gain_beats |
| `N.o` | gain of the post-attention norm, output projection | matrix; one scale |
| `N.gate` | gain of the FFN sub-norm if any, gate and up matrix | matrix; scales gate, up |
| `N.down` | gain of the next layer's first norm or of the last norm, down projection | matrix; one scale |
| `head` | output head | |

where matrix is gain_beats, rows, inputs, block_rows, scales. Blobs: `tokenizer.json`, `tokenizer_config.json`;
`embedding` (int8) and `embedding_scales` (float32) of a model whose head is not its embedding; otherwise the host takes
embedding rows from the head. The header's `model` holds {name, spec, eos_ids}.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden import elementwise, layout
from golden.config import AcceleratorConfig
from golden.model import LayerWeights, ModelSpec, ModelWeights
from host.checkpoint import Checkpoint, LazyLayers, golden_errors, read_checkpoint
from host.errors import UserError
from host.image import Image, Plan, write_image
from host.tokenizer import Files, Tokenizer

Beats = NDArray[np.uint8]


def block_rows(rows: int, config: AcceleratorConfig) -> int:
    """Rows of a row block: as few blocks as the accumulators allow, of about equal size, a multiple of 8."""
    blocks = -(-rows // config.block_rows)
    return -(-rows // (blocks * layout.ROW_MULTIPLE)) * layout.ROW_MULTIPLE


def plan_sections(weights: ModelWeights, config: AcceleratorConfig) -> list[Plan]:
    """The sections of an image of these weights, made when they are written."""
    s = weights.spec

    def gain(name: str, features: int, get: Callable[[], Any]) -> Plan:
        n = layout.float_beats(features, config)
        return Plan(name, n, lambda: layout.pack_gain(get(), config), {"gain_beats": n})

    def matrix(
        name: str,
        rows: int,
        inputs: int,
        get: Callable[[], NDArray[np.int8]],
        scales: Sequence[float],
        gain_features: int = 0,
        get_gain: Callable[[], Any] | None = None,
    ) -> Plan:
        block = block_rows(rows, config)
        n = layout.float_beats(gain_features, config)

        def make() -> Beats:
            data = layout.pack_linear(get(), config, block)
            return data if get_gain is None else np.concatenate([layout.pack_gain(get_gain(), config), data])

        info = {
            "gain_beats": n,
            "rows": rows,
            "inputs": inputs,
            "block_rows": block,
            "scales": list(map(float, scales)),
        }
        return Plan(name, n + rows * layout.tiles(inputs, config), make, info)

    def layer_sections(i: int) -> list[Plan]:
        # Layers may be lazy: only scales are taken now, arrays when a section is written.
        w = weights.layers[i]
        get = weights.layers

        def following() -> NDArray[np.float32]:
            return get[i + 1].input_norm if i + 1 < s.layers else weights.norm

        plans = [
            matrix(
                f"{i}.qkv",
                s.qkv_rows,
                s.hidden,
                lambda: layout.join_qkv(get[i].q, get[i].k, get[i].v, s.head_dim),
                (w.q_scale, w.k_scale, w.v_scale),
            )
        ]
        if s.attn_sub_norm:
            plans.append(gain(f"{i}.attention", s.q_dim, lambda: get[i].attn_norm))
        plans.append(
            matrix(f"{i}.o", s.hidden, s.q_dim, lambda: get[i].o, (w.o_scale,), s.hidden, lambda: get[i].post_norm)
        )
        plans.append(
            matrix(
                f"{i}.gate",
                2 * s.ffn,
                s.hidden,
                lambda: layout.join_gate_up(get[i].gate, get[i].up),
                (w.gate_scale, w.up_scale),
                s.ffn if s.ffn_sub_norm else 0,
                (lambda: get[i].ffn_norm) if s.ffn_sub_norm else None,
            )
        )
        plans.append(matrix(f"{i}.down", s.hidden, s.ffn, lambda: get[i].down, (w.down_scale,), s.hidden, following))
        return plans

    blocks = -(-s.vocab // config.key_block)
    out = [gain("input_norm", s.hidden, lambda: weights.layers[0].input_norm)]
    for i in range(s.layers):
        out += layer_sections(i)
    beats = blocks * layout.head_block_beats(s.hidden, config)
    return [*out, Plan("head", beats, lambda: layout.pack_head(*weights.head_rows, config))]


def convert(checkpoint: Checkpoint, path: Path, config: AcceleratorConfig) -> None:
    """Writes the image of a checkpoint for one board.

    Raises
    ------
    UserError : the formats cannot hold the model, or the file cannot be written.
    """
    weights = checkpoint.weights
    blobs: dict[str, Any] = {
        "tokenizer.json": checkpoint.tokenizer.tokenizer,
        "tokenizer_config.json": checkpoint.tokenizer.config,
    }
    if not weights.spec.tied:
        blobs |= {"embedding": weights.embedding, "embedding_scales": weights.embedding_scales.astype("<f4")}
    with golden_errors(checkpoint.name):
        write_image(
            path,
            config=config,
            model={"name": checkpoint.name, "spec": asdict(weights.spec), "eos_ids": list(checkpoint.eos_ids)},
            sections=plan_sections(weights, config),
            blobs=blobs,
        )


class Model:
    """A model in an open image.

    Parameters
    ----------
    image : the image.
    config : an accelerator with the image's beat geometry.

    Attributes
    ----------
    name, spec, eos_ids : from the header.
    """

    def __init__(self, image: Image, config: AcceleratorConfig):
        image.require(config)
        self.image = image
        self.config = config
        self._temporary: Path | None = None
        self.name: str = image.model["name"]
        self.eos_ids: tuple[int, ...] = tuple(image.model["eos_ids"])
        with golden_errors(image.path):
            self.spec = ModelSpec(**image.model["spec"])

    @staticmethod
    def open(path: Path, config: AcceleratorConfig, *, verify: bool = True) -> Model:
        """From a `.tlm` image, or from a checkpoint folder, which is converted to a temporary image.

        Raises
        ------
        UserError : there is no such file, or it cannot be used.
        """
        if not path.is_dir():
            return Model(Image(path, verify=verify), config)
        folder = Path(tempfile.mkdtemp(prefix="tellme-"))
        try:
            checkpoint = read_checkpoint(path)
            convert(checkpoint, folder / "model.tlm", config)
            model = Model(Image(folder / "model.tlm", verify=False), config)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        model._temporary = folder
        return model

    def close(self) -> None:
        """Removes the temporary image of a checkpoint; the mapping stays valid while it is in use."""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        files = Files(self.image.blob("tokenizer.json").tobytes(), self.image.blob("tokenizer_config.json").tobytes())
        return Tokenizer(files, self.spec.vocab)

    # ---- embedding ---------------------------------------------------------------------------------------------------

    def embedding_row(self, token: int) -> tuple[NDArray[np.int8], np.float32]:
        """int8 row [hidden] of a token and its scale."""
        if not self.spec.tied:
            n = self.spec.hidden
            row = self.image.blob("embedding")[token * n : (token + 1) * n].view(np.int8)
            return row, self.image.blob("embedding_scales")[4 * token : 4 * token + 4].view("<f4")[0]
        c = self.config
        block, key = divmod(token, c.key_block)
        start = self.image.sections["head"].address + block * layout.head_block_beats(self.spec.hidden, c)
        tile, place = divmod(key, c.keys_per_beat)
        cells = layout.cells(self.spec.hidden, c)
        at = start + c.scale_beats + tile + c.key_tile * np.arange(cells)
        beats = layout.unstripe(self.image.data[:, at])
        row = np.ascontiguousarray(beats[:, place * c.cell : (place + 1) * c.cell]).reshape(-1).view(np.int8)
        beat, word = divmod(key, c.word)
        scales = layout.unstripe(self.image.data[:, start + beat : start + beat + 1]).view("<f4")
        return row, np.float32(scales[0, word])

    def embed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Inputs float32[tokens, hidden] of a pass."""
        rows, scales = zip(*(self.embedding_row(t) for t in tokens), strict=True)
        return elementwise.dequantise(np.stack(rows), np.array(scales, np.float32))

    # ---- weights -----------------------------------------------------------------------------------------------------

    def weights(self) -> ModelWeights:
        """The weights, unpacked from the image."""
        s = self.spec
        rows, row_scales = layout.unpack_head(self.image.section("head"), s.vocab, s.hidden, self.config)
        embedding, embedding_scales = rows, row_scales
        if not s.tied:
            embedding = self.image.blob("embedding").view(np.int8).reshape(s.vocab, s.hidden)
            embedding_scales = self.image.blob("embedding_scales").view("<f4").astype(np.float32)
        with golden_errors(self.image.path):
            return ModelWeights(
                spec=s,
                layers=LazyLayers(s.layers, self._layer),
                norm=self._gain(f"{s.layers - 1}.down", s.hidden),
                embedding=embedding,
                embedding_scales=embedding_scales,
                head=None if s.tied else rows,
                head_scales=None if s.tied else row_scales,
            )

    def _gain(self, section: str, features: int) -> NDArray[np.float32]:
        beats = self.image.section(section)[: layout.float_beats(features, self.config)]
        return layout.unpack_floats(beats, features, self.config)[0]

    def _matrix(self, section: str) -> NDArray[np.int8]:
        info = self.image.sections[section].info
        data = self.image.section(section)[info["gain_beats"] :]
        return layout.unpack_linear(data, info["rows"], info["inputs"], self.config, info["block_rows"])

    def _layer(self, i: int) -> LayerWeights:
        s = self.spec
        q, k, v = layout.split_qkv(self._matrix(f"{i}.qkv"), s.heads, s.kv_heads, s.head_dim)
        gate, up = layout.split_gate_up(self._matrix(f"{i}.gate"))
        scales = {part: self.image.sections[f"{i}.{part}"].info["scales"] for part in ("qkv", "o", "gate", "down")}
        return LayerWeights(
            q=q,
            k=k,
            v=v,
            o=self._matrix(f"{i}.o"),
            gate=gate,
            up=up,
            down=self._matrix(f"{i}.down"),
            q_scale=scales["qkv"][0],
            k_scale=scales["qkv"][1],
            v_scale=scales["qkv"][2],
            o_scale=scales["o"][0],
            gate_scale=scales["gate"][0],
            up_scale=scales["gate"][1],
            down_scale=scales["down"][0],
            input_norm=self._gain("input_norm" if i == 0 else f"{i - 1}.down", s.hidden),
            post_norm=self._gain(f"{i}.o", s.hidden),
            attn_norm=self._gain(f"{i}.attention", s.q_dim) if s.attn_sub_norm else None,
            ffn_norm=self._gain(f"{i}.gate", s.ffn) if s.ffn_sub_norm else None,
        )


DEMO = "demo"
"""Name of the model that comes with the project."""


def demo_folder() -> Path:
    """The demo model's checkpoint: `host/demo_model` of an installed package, or `demo/model` of the repository.

    Raises
    ------
    UserError : it is in neither place.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "demo_model", here.parent / "demo" / "model"):
        if (folder / "config.json").exists():
            return folder
    raise UserError(
        "the demo model is not installed here; run from a clone of the repository, or give --model a checkpoint"
    )


def find_model(name: str) -> Path:
    """Path of `--model NAME`: 'demo' (for a folder of that name say ./demo), a checkpoint folder or a `.tlm` file.

    Raises
    ------
    UserError : there is nothing of that name.
    """
    if name == DEMO:
        return demo_folder()
    path = Path(name)
    if not path.exists():
        raise UserError(f"model {name!r} not found; give 'demo', a checkpoint folder or a .tlm image")
    return path
