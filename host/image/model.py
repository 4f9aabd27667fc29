"""A model in an image: what the driver loads, the program compiler measures and the golden model can be fed with.

Sections of an image, in the order of the program (N is a layer):

| section | content | `info` |
|---|---|---|
| `input_norm` | gain of the first norm | gain_beats |
| `N.qkv` | gains of a head of Q and of K, in the order of their rows (QK-norm), if any; QKV matrix | matrix; scales Q, K, V |
| `N.attention` | gain of the attention sub-norm; absent if there is none | gain_beats |
| `N.o` | gain of the post-attention norm, output projection | matrix; one scale |
| `N.gate` | gain of the FFN sub-norm if any, gate and up matrix | matrix; scales gate, up |
| `N.down` | gain of the next layer's first norm or of the last norm, down projection | matrix; one scale |
| `head` | output head; absent, as `rows`, if it is ternary (`ternary_head` of the specification) | |
| `screen` | ternary copy of the head, or a ternary head; absent, as `rows`, unless the head is screened | planes, unit, margin |
| `rows` | the head's int8 rows, each by itself | |

where matrix is gain_beats, rows, inputs, block_rows, scales. Blobs: `tokenizer.json`, `tokenizer_config.json`;
`embedding`, rows as the checkpoint has them in the type that the header's `embedding` names (float32, float16 or bfloat16).
An image of `--embedding int8`, whose header names no type, has int8 `embedding` and float32 `embedding_scales` if the head
is not the embedding, or is ternary; otherwise the host takes embedding rows from the head. The header's `model` holds {name, spec, eos_ids,
embedding}; spec is a `golden.spec.ModelSpec`.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellme.golden import elementwise, layout
from tellme.golden.arith import ceil_div
from tellme.golden.config import PRESETS, AcceleratorConfig
from tellme.golden.head import quantise_rows
from tellme.golden.model import LayerWeights, ModelWeights
from tellme.golden.project import DISTRIBUTION
from tellme.golden.screen import MAX_PLANES, Screen
from tellme.golden.spec import LAST_STEP, NORMS, STEPS, ModelSpec, RopeScaling, Step
from tellme.golden.ternary import damage
from tellme.host.checkpoints.checkpoint import Checkpoint, golden_errors, is_checkpoint, open_checkpoint, tell
from tellme.host.checkpoints.common import LazyLayers, sound_floats, undamaged
from tellme.host.errors import UserError
from tellme.host.image.file import Image, Plan, made_for, write_image, write_stream
from tellme.host.progress import progress
from tellme.host.text.streams import readable
from tellme.host.text.tokenizer import Files, Tokenizer

Beats = NDArray[np.uint8]


@dataclass(frozen=True)
class SectionShape:
    """What a specification and a beat geometry say of a section: its length, its `info` without the scales, and how many
    scales it has."""

    name: str
    beats: int
    info: dict[str, int]
    scales: int = 0


def section_count(spec: ModelSpec, planes: int = 0) -> int:
    """Sections of an image, whose ternary head has so many planes (0: none)."""
    return 2 + spec.layers * len(_layer_sections(spec)) + (2 if planes and not spec.ternary_head else 0)


def _layer_sections(spec: ModelSpec) -> list[Step]:
    """Steps of a layer that have a section: those with a matrix or a gain."""
    return [step for step in STEPS.values() if step.matrices or step.gains(spec)]


def section_shapes(spec: ModelSpec, config: AcceleratorConfig, planes: int = 0) -> Iterator[SectionShape]:
    """The sections of an image, in order; `planes` as in `section_count`."""
    s = spec

    n = layout.float_beats(s.hidden, config)
    yield SectionShape("input_norm", n, {"gain_beats": n})
    for i in range(s.layers):
        for step in _layer_sections(s):
            n = layout.float_beats(step.gains(s), config)
            shape = SectionShape(f"{i}.{step.name}", n, {"gain_beats": n})
            if step.matrices:
                rows, inputs = step.rows(s), step.inputs(s)
                shape.info.update(rows=rows, inputs=inputs, block_rows=layout.row_block(rows, config))
                beats = n + rows * layout.tiles(inputs, config)
                shape = replace(shape, beats=beats, scales=len(step.matrices))
            yield shape
    if s.ternary_head:
        yield SectionShape("screen", layout.screen_beats(s.vocab, 1, s.hidden, config), {"planes": 1})
        return
    blocks = ceil_div(s.vocab, config.key_block)
    yield SectionShape("head", blocks * layout.head_block_beats(s.hidden, config), {})
    if planes:
        yield SectionShape("screen", layout.screen_beats(s.vocab, planes, s.hidden, config), {"planes": planes})
        yield SectionShape("rows", s.vocab * layout.row_beats(s.hidden, config), {})


_MOST = float(np.finfo(np.float32).max)
_HEAD_BLOCKS = 64
_ROWS = 1 << 12
"""Blocks of the head that are laid out, and rows of an embedding that are checked, at a time."""


def plan_sections(weights: ModelWeights, config: AcceleratorConfig) -> list[Plan]:
    """The sections of an image of these weights, made when they are written, each layer read once."""
    s, layers = weights.spec, weights.layers
    s.check_format(config)
    weights.check_head(config)

    def gain_of(i: int, step: Step) -> NDArray[np.float32] | None:
        if step.name == LAST_STEP:
            return layers[i + 1].input_norm if i + 1 < s.layers else weights.norm
        parts = [
            layout.interleave_heads(gain, s.head_dim) if NORMS[norm].of_heads else gain
            for norm in step.gain
            if norm in s.norms and (gain := getattr(layers[i], norm)) is not None
        ]
        return np.concatenate(parts) if parts else None

    def head() -> Iterator[Beats]:
        rows, scales = weights.head_rows
        step = _HEAD_BLOCKS * config.key_block
        for i in range(0, s.vocab, step):
            yield layout.pack_head(rows[i : i + step], scales[i : i + step], config)

    def rows_alone() -> Iterator[Beats]:
        rows, scales = weights.head_rows
        for i in range(0, s.vocab, _ROWS):
            yield layout.pack_rows(rows[i : i + _ROWS], scales[i : i + _ROWS], i, config)

    ternary = weights.screen

    def make(shape: SectionShape) -> tuple[dict[str, Any], Iterable[Beats]]:
        if shape.name == "head":
            return {}, head()
        if shape.name == "input_norm":
            return dict(shape.info), [layout.pack_gain(layers[0].input_norm, config)]
        if shape.name == "screen":
            return _screen_info(ternary), _screen_pieces(ternary, config)
        if shape.name == "rows":
            return {}, rows_alone()
        layer, part = shape.name.split(".")
        i = int(layer)
        step = STEPS[part]
        # The matrices first: the last step's gain is of the next layer, and layers are read in order, each once.
        matrices, scales = zip(*map(layers[i].matrix, step.matrices), strict=True) if step.matrices else ((), ())
        gain = gain_of(i, step)
        if not matrices:
            return dict(shape.info), [layout.pack_gain(np.asarray(gain), config)]
        rows = layout.join_rows(step, matrices, s.head_dim)

        def pieces() -> Iterator[Beats]:
            if gain is not None:
                yield layout.pack_gain(gain, config)
            block = shape.info["block_rows"]
            for first in range(0, len(rows), block):
                yield layout.pack_linear(rows[first : first + block], config, block)

        return {**shape.info, "scales": list(map(float, scales))}, pieces()

    planes = 0 if ternary is None else ternary.count
    shapes = section_shapes(s, config, planes)
    return [Plan(shape.name, shape.beats, partial(make, shape)) for shape in shapes]


def _screen_info(ternary: Screen | None) -> dict[str, Any]:
    assert ternary is not None
    return {"planes": ternary.count, "unit": float(ternary.unit), "margin": float(ternary.margin)}


def _screen_pieces(ternary: Screen | None, config: AcceleratorConfig) -> Iterator[Beats]:
    """The ternary head, some whole row blocks at a time."""
    assert ternary is not None
    step = _HEAD_BLOCKS * config.block_rows // ternary.count
    for i in range(0, len(ternary.planes), step):
        yield layout.pack_screen(ternary.planes[i : i + step], ternary.scales[i : i + step], config)


def _image_parts(checkpoint: Checkpoint, config: AcceleratorConfig) -> dict[str, Any]:
    """What `write_image` and `write_stream` take."""
    weights = checkpoint.weights
    blobs: dict[str, Any] = {
        "tokenizer.json": checkpoint.tokenizer.tokenizer,
        "tokenizer_config.json": checkpoint.tokenizer.config,
    }
    inputs: dict[str, str] = {}
    if weights.inputs is not None:
        inputs["embedding"] = elementwise.row_type(weights.inputs)
        blobs["embedding"] = weights.inputs
    elif _own_embedding(weights.spec):
        blobs |= {"embedding": weights.embedding, "embedding_scales": weights.embedding_scales.astype("<f4")}
    spec = {name: value for name, value in asdict(weights.spec).items() if value is not None}
    for later in ("qk_norm", "group_scales", "ternary_head"):
        if not spec[later]:
            del spec[later]  # images of models without it stay as they were, and older versions read them
    return {
        "config": config,
        "model": {"name": readable(checkpoint.name), "spec": spec, "eos_ids": list(checkpoint.eos_ids), **inputs},
        "sections": plan_sections(weights, config),
        "blobs": blobs,
    }


def _own_embedding(spec: ModelSpec) -> bool:
    """Whether int8 rows of the embedding are kept beside the head."""
    return not spec.tied or spec.ternary_head


def convert(checkpoint: Checkpoint, path: Path, config: AcceleratorConfig, *, show: bool = False) -> None:
    """Writes the image of a checkpoint for one board, and says on stderr what had to be assumed of it.

    Parameters
    ----------
    show : a progress bar.

    Raises
    ------
    UserError : the formats cannot hold the model, its weights are not ternary, or the file cannot be written.
    """
    with golden_errors(checkpoint.name):
        parts = _image_parts(checkpoint, config)
        beats = sum(p.beats for p in parts["sections"])
        with progress(f"converting {checkpoint.name}", beats, show=show) as advance:
            write_image(path, **parts, advance=advance)
    tell(checkpoint.notes)


def read_spec(values: Any) -> ModelSpec:
    """A specification from an image's header.

    Raises
    ------
    ValueError : a field is unknown, missing or of the wrong type. ModelError : a value is out of range.
    """
    if not isinstance(values, dict):
        raise ValueError("spec must be an object")
    values = dict(values)
    for name, value in values.items():
        kind = ModelSpec.__dataclass_fields__[name].type if name in ModelSpec.__dataclass_fields__ else None
        if kind is None:
            raise ValueError(f"spec has an unknown field {name!r}")
        good = {
            "int": type(value) is int and 0 < value < 1 << 31,
            "float": type(value) in (int, float) and 0 <= value < 3e38,
            "bool": type(value) is bool,
        }
        if not good.get(str(kind), True):
            raise ValueError(f"{name} of spec must be of type {kind}, not {value!r}")
    scaling = values.get("rope_scaling")
    if scaling is not None:
        fields = set(RopeScaling.__dataclass_fields__)
        if not isinstance(scaling, dict) or not {"kind", "factor"} <= set(scaling) <= fields:
            raise ValueError("rope_scaling of spec must be an object of known fields, with kind and factor")
        numbers = [v for k, v in scaling.items() if k != "kind"]
        if not all(type(v) in (int, float) and 0 < v < 3e38 for v in numbers):
            raise ValueError("rope_scaling of spec must hold positive numbers")
        values["rope_scaling"] = RopeScaling(**scaling)
    try:
        return ModelSpec(**values)
    except TypeError as e:
        raise ValueError(f"spec is incomplete ({e})") from e


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
        try:
            with golden_errors(image.path):
                self.name, self.eos_ids = self._identity()
                self.spec = read_spec(image.model.get("spec"))
                self._check_sections()
        except ValueError as e:
            raise UserError(f"{image.path}: its header is broken, {e}; convert the checkpoint again") from e

    def _identity(self) -> tuple[str, tuple[int, ...]]:
        name, ids = self.image.model.get("name"), self.image.model.get("eos_ids")
        if not isinstance(name, str):
            raise ValueError("name of model must be a string")
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise ValueError("eos_ids of model must be a list of integers")
        return name, tuple(ids)

    def _check_sections(self) -> None:
        """Holds the sections of the image against what its specification asks for."""
        sections, planes = self.image.sections, self.planes
        if len(sections) != section_count(self.spec, planes):
            raise ValueError(f"it has {len(sections)} sections, the model needs {section_count(self.spec, planes)}")
        for shape, have in zip(section_shapes(self.spec, self.config, planes), sections.values(), strict=True):
            if (have.name, have.beats) != (shape.name, shape.beats):
                raise ValueError(
                    f"section {have.name!r} of {have.beats} beats is where {shape.name!r} of {shape.beats} belongs"
                )
            block = have.info.get("block_rows", 8)
            if type(block) is not int or block <= 0 or block % layout.ROW_MULTIPLE:
                raise ValueError(f"block_rows of section {shape.name!r} must be a multiple of {layout.ROW_MULTIPLE}")
            for name, value in shape.info.items():
                if name != "block_rows" and have.info.get(name) != value:
                    raise ValueError(f"{name} of section {shape.name!r} must be {value}, not {have.info.get(name)!r}")
            if shape.scales:
                scales = have.info.get("scales")
                if (
                    not isinstance(scales, list)
                    or len(scales) != shape.scales
                    or not all(type(v) in (int, float) and 0 < v <= _MOST for v in scales)
                    or "block_rows" not in have.info
                ):
                    raise ValueError(f"section {shape.name!r} must have {shape.scales} positive scales and block_rows")
        for name, size in self._embedding_bytes().items():
            if self.image.blob_bytes(name) != size:
                raise ValueError(f"part {name!r} must have {size} bytes, not {self.image.blob_bytes(name)}")

    def _embedding_bytes(self) -> dict[str, int]:
        """Blobs of the embedding that the header asks for."""
        s, kind = self.spec, self.embedding_type
        if kind != "int8":
            return {"embedding": np.dtype(elementwise.ROW_TYPES[kind]).itemsize * s.vocab * s.hidden}
        return {} if not _own_embedding(s) else {"embedding": s.vocab * s.hidden, "embedding_scales": 4 * s.vocab}

    @property
    def embedding_type(self) -> str:
        """Element type of the embedding's rows: int8 or one of `golden.elementwise.ROW_TYPES`.

        Raises
        ------
        ValueError : the header names another one.
        """
        kind = self.image.model.get("embedding", "int8")
        if kind != "int8" and (type(kind) is not str or kind not in elementwise.ROW_TYPES):
            raise ValueError(f"embedding of model must be int8, {', '.join(elementwise.ROW_TYPES)}, not {kind!r}")
        return str(kind)

    @property
    def planes(self) -> int:
        """Planes of the ternary head, 0: it has none.

        Raises
        ------
        ValueError : what the header says of them is broken.
        """
        section = self.image.sections.get("screen")
        if section is None:
            return 0
        planes: Any = section.info.get("planes")
        numbers: list[Any] = [section.info.get(name) for name in ("unit", "margin")]
        if type(planes) is not int or not 1 <= planes <= MAX_PLANES:
            raise ValueError(f"planes of section 'screen' must be from 1 to {MAX_PLANES}, not {planes!r}")
        if not all(type(v) in (int, float) and 0 <= v <= _MOST for v in numbers):
            raise ValueError("section 'screen' must have a positive unit and a margin")
        return planes

    @property
    def screen_facts(self) -> Screen | None:
        """The ternary head without its weights, None if there is none."""
        if not self.planes:
            return None
        info = self.image.sections["screen"].info
        none = np.empty((0, self.planes, 0), np.int8), np.empty((0, self.planes), np.uint16)
        return Screen(*none, np.float32(info["unit"]), np.float32(info["margin"]), self.spec.ternary_head)

    @staticmethod
    def open(
        path: Path,
        config: AcceleratorConfig,
        *,
        verify: bool = True,
        latent: bool = False,
        show: bool = False,
        prepare: Callable[[Checkpoint], Checkpoint] | None = None,
    ) -> Model:
        """From a `.tlm` image, or from a checkpoint, which is converted to an image in a file without a name: nothing is left
        of it however the process ends.

        Parameters
        ----------
        verify : check an image against its checksums, and that its weights are not damaged.
        latent : as in `host.checkpoints.checkpoint.read_checkpoint`.
        show : a progress bar.
        prepare : what is done to a checkpoint before it is converted.

        Raises
        ------
        UserError : there is no such file, or it cannot be used.
        """
        if not is_checkpoint(path):
            model = Model(Image(path, verify=verify), config)
            if verify:
                model.check_weights()
            return model
        checkpoint = open_checkpoint(path, latent=latent)
        if prepare is not None:
            checkpoint = prepare(checkpoint)
        with golden_errors(checkpoint.name):
            parts = _image_parts(checkpoint, config)
            try:
                with tempfile.TemporaryFile(prefix="tellme-") as f:
                    beats = sum(p.beats for p in parts["sections"])
                    with progress(f"converting {checkpoint.name}", beats, show=show) as advance:
                        write_stream(f, **parts, advance=advance)
                    f.flush()
                    tell(checkpoint.notes)
                    return Model(Image(path, verify=False, file=f), config)
            except OSError as e:
                raise UserError(
                    f"{tempfile.gettempdir()}: the image of {checkpoint.name} cannot be written there ({e.strerror}); "
                    "convert the checkpoint first"
                ) from e

    def close(self) -> None:
        """Gives back the memory of the mapped image; the model stays usable."""
        self.image.release()

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

    def _inputs(self) -> NDArray[Any] | None:
        """Rows of the embedding as the checkpoint has them [vocab, hidden], mapped; None if they are int8."""
        kind = self.embedding_type
        if kind == "int8":
            return None
        return self.image.blob("embedding").view(elementwise.ROW_TYPES[kind]).reshape(self.spec.vocab, self.spec.hidden)

    def embedding_row(self, token: int) -> tuple[NDArray[np.int8], np.float32]:
        """int8 row [hidden] of a token and its scale, in an image of `--embedding int8`."""
        if _own_embedding(self.spec):
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
        inputs = self._inputs()
        if inputs is not None:
            return elementwise.widen(inputs[list(tokens)])
        rows, scales = zip(*(self.embedding_row(t) for t in tokens), strict=True)
        return elementwise.dequantise(np.stack(rows), np.array(scales, np.float32))

    # ---- weights -----------------------------------------------------------------------------------------------------

    def check_weights(self) -> None:
        """Looks for damage that was there when the image was made, and which its checksums therefore do not show: in the packed bytes of
        every matrix, the gains and the rows of head and embedding.

        Raises
        ------
        UserError : naming the first part that is damaged.
        """
        s, c = self.spec, self.config
        if self.planes:
            ternary = self._screen()
            if s.ternary_head and ternary is not None:
                undamaged(f"{self.image.path}: ternary head", damage(np.sign(ternary.planes[:, 0]).astype(np.int8)))
        for shape in section_shapes(s, c):
            if shape.name in ("head", "screen"):
                continue
            info, beats = self.image.sections[shape.name].info, self.image.section(shape.name)
            step = STEPS.get(shape.name.split(".")[-1])
            gain, matrix = beats[: info["gain_beats"]], beats[info["gain_beats"] :]
            if len(gain):
                self._sound_floats(
                    f"gain of section {shape.name!r}",
                    layout.unpack_floats(gain, step.gains(s) if step else s.hidden, c),
                )
            if step is None or not step.matrices:
                continue
            rows = layout.packed_rows(matrix, info["rows"], info["inputs"], c, info["block_rows"])
            place = c.packing.first_invalid(rows)
            if place is not None:
                raise UserError(
                    f"{self.image.path}: section {shape.name!r}: {c.packing.rule}; found {rows[place]} at row {place[0]}, "
                    f"byte {place[1]}; convert the checkpoint again"
                )
            sizes = [n for n, _ in step.shapes(s)]
            for name, packed in layout.split_rows(step, rows, sizes, None).items():
                undamaged(f"{self.image.path}: {name} of section {shape.name!r}", c.packing.damage(packed))
        if not s.ternary_head:
            alive, scales = [], []
            for head, row_scales in self._head_pieces():
                alive.append(head.any(axis=1))
                scales.append(row_scales)
            self._sound_rows("head", np.concatenate(alive)[: s.vocab], np.concatenate(scales)[: s.vocab])
        inputs = self._inputs()
        if inputs is not None:
            flags = []
            for i in range(0, s.vocab, _ROWS):
                values = elementwise.widen(inputs[i : i + _ROWS])
                if not np.isfinite(values).all():
                    raise UserError(f"{self.image.path}: embedding holds NaN or infinity; convert the checkpoint again")
                flags.append(values.any(axis=1))
            sound_floats(f"{self.image.path}: embedding, by rows,", np.concatenate(flags))
        elif _own_embedding(s):
            blob = self.image.blob("embedding").reshape(s.vocab, s.hidden)
            flags = [blob[i : i + _ROWS].any(axis=1) for i in range(0, s.vocab, _ROWS)]
            self._sound_rows("embedding", np.concatenate(flags), self.image.blob("embedding_scales").view("<f4"))
        self.image.release()

    def _screen(self) -> Screen | None:
        """The ternary head.

        Raises
        ------
        UserError : it is damaged.
        """
        if not self.planes:
            return None
        info = self.image.sections["screen"].info
        with golden_errors(f"{self.image.path}: section 'screen'"):
            weights, scales = layout.unpack_screen(
                self.image.section("screen"),
                self.spec.vocab,
                self.planes,
                self.spec.hidden,
                self.config,
                self.spec.ternary_head,
            )
        return Screen(weights, scales, np.float32(info["unit"]), np.float32(info["margin"]), self.spec.ternary_head)

    def _head_pieces(self) -> Iterator[tuple[NDArray[np.int8], NDArray[np.float32]]]:
        """Rows and scales of the head, some blocks at a time, the last ones filled up with zeros."""
        section, c = self.image.sections["head"], self.config
        block = layout.head_block_beats(self.spec.hidden, c)
        for i in range(0, section.beats, _HEAD_BLOCKS * block):
            n = min(_HEAD_BLOCKS * block, section.beats - i)
            beats = layout.unstripe(self.image.data[:, section.address + i : section.address + i + n])
            yield layout.unpack_head(beats, n // block * c.key_block, self.spec.hidden, c)

    def _sound_rows(self, what: str, alive: NDArray[np.bool_], scales: NDArray[np.float32]) -> None:
        self._sound_floats(f"scales of the {what}", scales)
        if (scales < 0).any():
            raise UserError(f"{self.image.path}: a scale of the {what} is negative; convert the checkpoint again")
        sound_floats(f"{self.image.path}: {what}, by rows,", alive)

    def _sound_floats(self, what: str, values: NDArray[np.float32]) -> None:
        if not np.isfinite(values).all():
            raise UserError(f"{self.image.path}: {what} holds NaN or infinity; convert the checkpoint again")
        sound_floats(f"{self.image.path}: {what}", values.reshape(-1))

    def weights(self) -> ModelWeights:
        """The weights, unpacked from the image.

        Raises
        ------
        UserError : they are damaged, as `check_weights` finds.
        """
        self.check_weights()
        s = self.spec
        if s.ternary_head:
            rows, row_scales = np.empty((s.vocab, s.hidden), np.int8), np.empty(s.vocab, np.float32)
        else:
            rows, row_scales = layout.unpack_head(self.image.section("head"), s.vocab, s.hidden, self.config)
        embedding, embedding_scales, inputs = rows, row_scales, self._inputs()
        own, head = _own_embedding(s), not s.tied and not s.ternary_head
        if own and inputs is not None:
            embedding, embedding_scales = np.empty_like(rows), np.empty_like(row_scales)
            for i in range(0, s.vocab, _ROWS):
                part = slice(i, i + _ROWS)
                embedding[part], embedding_scales[part] = quantise_rows(elementwise.widen(inputs[part]))
        elif own:
            embedding = self.image.blob("embedding").view(np.int8).reshape(s.vocab, s.hidden)
            embedding_scales = self.image.blob("embedding_scales").view("<f4").astype(np.float32)
        with golden_errors(self.image.path):
            return ModelWeights(
                spec=s,
                layers=LazyLayers(s, self._layer),
                norm=self._gain(s.layers, "input_norm"),
                embedding=embedding,
                embedding_scales=embedding_scales,
                head=rows if head else None,
                head_scales=row_scales if head else None,
                screen=self._screen(),
                inputs=inputs,
            )

    def _gain(self, layer: int, norm: str) -> NDArray[np.float32]:
        """The gain of a layer's norm, from the section of the step before it; of the layer behind the last one, the last norm's."""
        step = next(step for step in STEPS.values() if norm in step.gain)
        section = f"{layer}.{step.name}"
        if step.name == LAST_STEP:
            section = f"{layer - 1}.{step.name}" if layer else "input_norm"
        size, first = NORMS[norm].size(self.spec), 0
        for before in step.gain[: step.gain.index(norm)]:
            first += NORMS[before].size(self.spec)
        beats = self.image.section(section)[: layout.float_beats(step.gains(self.spec), self.config)]
        gain = layout.unpack_floats(beats, step.gains(self.spec), self.config)[0, first : first + size]
        return layout.deinterleave_heads(gain, self.spec.head_dim) if NORMS[norm].of_heads else gain

    def _matrix(self, section: str) -> NDArray[np.integer]:
        info = self.image.sections[section].info
        data = self.image.section(section)[info["gain_beats"] :]
        with golden_errors(f"{self.image.path}: section {section!r}"):
            return layout.unpack_linear(data, info["rows"], info["inputs"], self.config, info["block_rows"])

    def _layer(self, i: int) -> LayerWeights:
        s = self.spec
        parts: dict[str, Any] = {norm: self._gain(i, norm) for norm in s.norms}
        for step in STEPS.values():
            if step.matrices:
                rows, sizes = self._matrix(f"{i}.{step.name}"), [n for n, _ in step.shapes(s)]
                parts |= layout.split_rows(step, rows, sizes, s.head_dim)
                scales = self.image.sections[f"{i}.{step.name}"].info["scales"]
                parts |= {f"{name}_scale": scale for name, scale in zip(step.matrices, scales, strict=True)}
        return LayerWeights(**parts)


def check_rows(model: Model, embedding: str | None) -> None:
    """Refuses, with UserError, a model whose embedding is not what `--embedding` asks for: exact or int8; None: anything."""
    if embedding is not None and (embedding == "int8") != (model.embedding_type == "int8"):
        raise UserError(
            f"{model.image.path}: its embedding is {model.embedding_type}, --embedding asks for {embedding}; convert the checkpoint "
            f"with --embedding {embedding}"
        )


DEMO, DEMO_QWEN3 = "demo", "demo-qwen3"
"""Names of the models that come with the project: BitNet, and a ternary Qwen3 with group scales."""


def demo_folder() -> Path:
    """The demo model's checkpoint, `demo/model` of the repository and of an installed package.

    Raises
    ------
    UserError : it is not there.
    """
    folder = Path(__file__).resolve().parents[2] / "demo" / "model"
    if not (folder / "config.json").exists():
        raise UserError(
            f"{folder}: the demo model is missing; install {DISTRIBUTION} again, or give --model a checkpoint"
        )
    return folder


_QWEN3 = Path(__file__).resolve().parents[2] / "demo" / "qwen3" / "demo-qwen3.gguf"


def demo_qwen3() -> Path:
    """The second demo model's checkpoint, likewise.

    Raises
    ------
    UserError : it is not there.
    """
    if not _QWEN3.exists():
        raise UserError(
            f"{_QWEN3}: the demo model is missing; install {DISTRIBUTION} again, or give --model a checkpoint"
        )
    return _QWEN3


DEMOS = {DEMO: demo_folder, DEMO_QWEN3: demo_qwen3}
"""Where each of them is."""


def find_model(name: str) -> Path:
    """Path of `--model NAME`: 'demo' (for a folder of that name say ./demo), 'demo-qwen3', a checkpoint or a `.tlm` file.

    Raises
    ------
    UserError : there is nothing of that name.
    """
    if name in DEMOS:
        return DEMOS[name]()
    path = Path(name)
    if path.exists():
        return path
    hint = ""
    if _HUB_NAME.fullmatch(name):
        folder = name.split("/")[1]
        hint = (
            f"; a model of the Hugging Face hub is fetched first: hf download {name} --local-dir {folder} (hf comes with "
            f"pip install huggingface_hub), then --model {folder}"
        )
    raise UserError(
        f"model {name!r} not found; give {' or '.join(map(repr, DEMOS))}, a checkpoint folder, a .gguf file or a .tlm image{hint}"
    )


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?<!\.tlm)(?<!\.gguf)")
"""What may be a model on the hub: owner/name."""


def preset_of(path: Path) -> str | None:
    """Preset that a `.tlm` image was made for: the one it names, or the first of its beat geometry. None for a checkpoint.

    Raises
    ------
    UserError : the image cannot be read, or no preset has its geometry.
    """
    if is_checkpoint(path):
        return None
    image = Image(path, verify=False)
    named = image.build.removeprefix("tellme-").rpartition("-")[0]
    fits = [c.name for c in made_for(image.geometry)]
    if not fits:
        raise UserError(f"{path}: was made for beats of {image.geometry}, which none of {', '.join(PRESETS)} has")
    return named if named in fits else fits[0]


def weight_format_of(path: Path) -> str | None:
    """Format of weights that a `.tlm` image was made for, or that a demo model needs. None for any other checkpoint: opening it tells.

    Raises
    ------
    UserError : the image cannot be read.
    """
    if is_checkpoint(path):
        return "grouped" if path == _QWEN3 else None
    return str(Image(path, verify=False).geometry["weight_format"])
