"""Compiles a model into a program: places everything in the beat address space and writes the descriptors.

The memory map, from beat 0: program, inputs x (a place for every lane), rotary table, image, logits (a place for every
lane), KV cache. The window ends behind the cache, so that nothing else can be touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tellme.golden import layout
from tellme.golden.arith import ceil_div
from tellme.golden.check import problem
from tellme.golden.config import AcceleratorConfig
from tellme.golden.hadamard import query_scale_factor
from tellme.golden.kv import EIGHT, CacheFormat
from tellme.golden.layout import KvLayout
from tellme.golden.program import DESCRIPTOR_BYTES, Kind, Opcode, encode
from tellme.golden.registers import MAX_SLOTS
from tellme.golden.screen import BOUND_SHIFT
from tellme.golden.spec import STEPS, ModelSpec, Step, rope_tables
from tellme.host.checkpoints.checkpoint import golden_errors
from tellme.host.errors import UserError
from tellme.host.image.file import Section
from tellme.host.image.model import Beats, Model, section_shapes


@dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled program and its memory map. Addresses and lengths are in beats.

    Attributes
    ----------
    spec : the model, its context cut to what fits.
    code : the descriptors, 64 bytes each.
    length : their number.
    rope_table : uint8[beats, beat_bytes], what belongs at `rope_address`.
    kv : places inside a layer's cache; layer i's starts at `kv_address + i * slots * kv.slot_stride`.
    window_beats : the whole.
    screened : it can run a screened head, or has a ternary one.
    """

    config: AcceleratorConfig
    spec: ModelSpec
    slots: int
    context: int
    code: bytes
    length: int
    program_address: int
    x_address: int
    x_beats: int
    rope_address: int
    rope_table: Beats
    image_address: int
    logits_address: int
    logits_stride: int
    kv_address: int
    kv: KvLayout
    window_beats: int
    screened: bool = False


def usable_context(spec: ModelSpec, config: AcceleratorConfig, kv: CacheFormat = EIGHT) -> int:
    """Positions that model, cache layout and score memory all allow; at least one, for the groups that `check_fits` lets pass."""
    limit = min(spec.max_context, config.context_limit(kv.v_narrow))
    group = spec.heads // spec.kv_heads
    # The last position sees limit - 1 cached keys, in a pass of one lane.
    sets = ceil_div(group, config.attention_lanes >> kv.v_narrow)
    by_scores = (config.score_words // sets - 1) * (config.keys_per_beat << kv.v_narrow) + 1
    return min(limit, by_scores)


def check_positions(spec: ModelSpec, config: AcceleratorConfig, name: str, kv: CacheFormat, **positions: int) -> None:
    """Raises UserError unless a pass may begin behind so many positions, of each of these by name."""
    usable = usable_context(spec, config, kv)
    for what, value in positions.items():
        if not 0 <= value < usable:
            raise UserError(f"{what} must be from 0 to {usable - 1} for {name} on {config.name!r}, not {value}")


def check_fits(spec: ModelSpec, config: AcceleratorConfig, name: str, kv: CacheFormat = EIGHT) -> None:
    """Refuses a model beyond what was built, and a cache that was not.

    Raises
    ------
    UserError : naming the quantity, its value and the limit.
    """
    if why := kv.problem(config):
        narrow = kv.v_narrow and not config.narrow_cache
        leave, setting = ("take --kv 8", "narrow_cache") if narrow else ("leave --hadamard out", "hadamard")
        raise UserError(f"{name}: {why}; {leave}, or build an accelerator with --set {setting}=true")
    with golden_errors(name):
        replace(spec, max_context=min(spec.max_context, config.max_context)).check_fits(config)
    for what, rows in (("qkv", spec.qkv_rows), ("gate and up", 2 * spec.ffn)):
        if rows > config.max_rows:
            raise UserError(f"{name}: the {what} matrix has {rows} rows, a descriptor holds at most {config.max_rows}")


def checked_context(
    spec: ModelSpec, config: AcceleratorConfig, name: str, context: int | None, kv: CacheFormat = EIGHT
) -> int:
    """Positions of a cache slot: `context`, or all that are usable.

    Raises
    ------
    UserError : there are not that many.
    """
    usable = usable_context(spec, config, kv)
    if context is not None and not 1 <= context <= usable:
        cache = f" with --kv {kv.name}" if config.narrow_cache else ""
        raise UserError(
            f"{name}: context must be from 1 to {usable} positions on board {config.name!r}{cache}, not {context}"
        )
    return usable if context is None else context


def check_slots(slots: int) -> None:
    """Refuses numbers of cache slots that the hardware cannot tell apart, with a UserError."""
    if not 1 <= slots <= MAX_SLOTS:
        raise UserError(f"slots must be from 1 to {MAX_SLOTS}, what the accelerator can tell apart, not {slots}")


def planned_sections(spec: ModelSpec, config: AcceleratorConfig, planes: int = 0) -> dict[str, Section]:
    """Sections as an image of such a model for `config` would have them, with scales of 1: enough for sizes and addresses.

    planes : of the ternary copy of the head, 0: none.
    """
    out: dict[str, Section] = {}
    at = 0
    for shape in section_shapes(spec, config, planes):
        info = {**shape.info, "scales": [1.0] * shape.scales, "unit": 1.0}
        out[shape.name] = Section(shape.name, at, shape.beats, (), info)
        at += shape.beats
    return out


def compile_program(
    model: Model, config: AcceleratorConfig, *, slots: int = 1, context: int | None = None, kv: CacheFormat = EIGHT
) -> Program:
    """Places a model in memory and writes its program.

    Parameters
    ----------
    model : an open image, laid out for `config`'s beats.
    slots : cache slots.
    context : positions of a slot; all that are usable if None.
    kv : elements of the cache, of all slots.

    Raises
    ------
    UserError : the model is beyond the accelerator, or memory beyond 32-bit beat addresses; says by how much.
    """
    return compile_sections(model.name, model.spec, model.image.sections, config, slots=slots, context=context, kv=kv)


def compile_sections(
    name: str,
    spec: ModelSpec,
    sections: Mapping[str, Section],
    config: AcceleratorConfig,
    *,
    slots: int = 1,
    context: int | None = None,
    kv: CacheFormat = EIGHT,
) -> Program:
    """`compile_program` from the parts of an image that it needs, or of one that is only planned."""
    context = _checked_context(name, spec, sections, config, context, kv)
    spec = replace(spec, max_context=context)
    screened = "screen" in sections
    length = 1 + len(STEPS) * spec.layers + 1 + screened + (not spec.ternary_head)
    if length > config.max_descriptors:
        raise UserError(
            f"{name}: needs {length} descriptors ({spec.layers} layers), accelerator {config.name!r} holds "
            f"at most {config.max_descriptors} (max_descriptors)"
        )
    program = _placed(name, spec, sections, config, slots, length, kv)
    if program.window_beats >= 1 << 32:
        raise UserError(
            f"{name}: needs {program.window_beats:,} beats of memory, addresses hold {1 << 32:,}; take fewer slots "
            "or a smaller context"
        )
    check_slots(slots)

    with golden_errors(name):
        try:
            code = _descriptors(program, sections)
        except ValueError as e:
            raise UserError(f"{name}: {e}") from e
    # A rule of the hardware that no check above has told in the words of the model.
    if (found := problem(code, config, context=context, slots=slots)) is not None:
        raise UserError(f"{name}: accelerator {config.name!r} cannot execute descriptor {found[0]}: {found[1]}")
    return replace(program, code=code, screened=screened)


def _checked_context(
    name: str,
    spec: ModelSpec,
    sections: Mapping[str, Section],
    config: AcceleratorConfig,
    context: int | None,
    kv: CacheFormat,
) -> int:
    """The context of a program; refuses what `compile_sections` cannot compile."""
    check_fits(spec, config, name, kv)
    context = checked_context(spec, config, name, context, kv)
    for s in sections.values():
        if s.info.get("block_rows", 0) > config.block_rows:
            raise UserError(
                f"{name}: section {s.name!r} has row blocks of {s.info['block_rows']}, board {config.name!r} "
                f"takes at most {config.block_rows}; convert the checkpoint with --board {config.name}"
            )
    return context


def _placed(
    name: str,
    spec: ModelSpec,
    sections: Mapping[str, Section],
    config: AcceleratorConfig,
    slots: int,
    length: int,
    cache: CacheFormat,
) -> Program:
    """The memory map of a program of `length` descriptors, without its code; `spec` has the context of the program."""
    context = spec.max_context
    with golden_errors(name):
        kv = KvLayout(config, spec.head_dim, spec.kv_heads, context, cache)
    program_address = 0
    x_address = program_address + ceil_div(length * DESCRIPTOR_BYTES, config.beat_bytes)
    x_beats = layout.float_beats(spec.hidden, config)
    rope_address = x_address + config.lanes * x_beats
    rope_table = layout.pack_rope(*rope_tables(spec, context), config)
    image_address = rope_address + len(rope_table)
    logits_address = image_address + sum(s.beats for s in sections.values())
    blocks = ceil_div(spec.vocab, config.key_block)
    logits_stride = layout.float_beats(blocks * config.key_block, config)
    # A run of the cache then takes as few bursts as it can: bursts end at multiples of their length.
    kv_address = ceil_div(logits_address + config.lanes * logits_stride, config.burst_beats) * config.burst_beats
    return Program(
        config=config,
        spec=spec,
        slots=slots,
        context=context,
        code=b"",
        length=length,
        program_address=program_address,
        x_address=x_address,
        x_beats=x_beats,
        rope_address=rope_address,
        rope_table=rope_table,
        image_address=image_address,
        logits_address=logits_address,
        logits_stride=logits_stride,
        kv_address=kv_address,
        kv=kv,
        window_beats=kv_address + spec.layers * slots * kv.slot_stride,
    )


def _descriptors(program: Program, sections: Mapping[str, Section]) -> bytes:
    """The descriptors of a program whose memory map is made.

    Raises
    ------
    ValueError : a value is beyond its field.
    """
    config, spec, kv = program.config, program.spec, program.kv
    image_address, kv_address = program.image_address, program.kv_address
    layer_stride = program.slots * kv.slot_stride

    def at(section: str) -> int:
        return image_address + sections[section].address

    def executed(i: int, step: Step) -> bytes:
        """The descriptor of a layer's step."""
        section = sections.get(f"{i}.{step.name}")  # attention without a sub-norm has none
        info: dict[str, Any] = section.info if section else {"gain_beats": 0}
        gain_beats = info["gain_beats"]
        address = at(section.name) if section else 0
        common = {"address": address, "gain_beats": gain_beats, "gain_out": gain_beats > 0, **step.fields(spec)}
        if not step.matrices:
            cache = kv_address + i * layer_stride
            strides = {"slot_stride": kv.slot_stride, "head_stride": kv.head_stride}
            return encode(Opcode.ATTENTION, kv_address=cache, **strides, **kv.cache.fields, **common)
        heads: dict[str, Any] = {}
        if step.kind(spec) is Kind.QKV:
            turned = kv.cache.hadamard
            heads = {**kv.cache.fields, "hadamard": turned, "q_scale": float(query_scale_factor(spec.head_dim, turned))}
        return encode(
            Opcode.LINEAR,
            tiles=layout.tiles(info["inputs"], config),
            rows=info["rows"],
            inputs=info["inputs"],
            block_rows=info["block_rows"],
            inv_n=1 / info["inputs"],
            **{f"scale{n}": config.packing.scale(scale) for n, scale in enumerate(info["scales"])},
            **heads,
            **common,
        )

    code = encode(
        Opcode.LOAD,
        gain_out=1,
        address=at("input_norm"),
        gain_beats=sections["input_norm"].info["gain_beats"],
        x_address=program.x_address,
        inputs=spec.hidden,
        x_beats=program.x_beats,
        rope_address=program.rope_address,
        rope_beats=layout.rope_beats(spec.head_dim, config),
        head_dim=spec.head_dim,
    )
    for i in range(spec.layers):
        code += b"".join(executed(i, step) for step in STEPS.values())
    if "screen" in sections:
        info = sections["screen"].info
        code += encode(
            Opcode.SCREEN,
            norm_in=1,
            address=at("screen"),
            tiles=layout.tiles(spec.hidden, config),
            planes=info["planes"],
            inputs=spec.hidden,
            inv_n=1 / spec.hidden,
            eps=spec.norm_eps,
            logits_address=program.logits_address,
            logits_stride=program.logits_stride,
            rows=spec.vocab,
            row_address=0 if spec.ternary_head else at("rows"),
            exact=spec.ternary_head,
            bound_unit=info["unit"] if spec.ternary_head else info["unit"] * (1 << BOUND_SHIFT),
        )
    if spec.ternary_head:
        return code + encode(Opcode.END)
    code += encode(
        Opcode.HEAD,
        norm_in=1,
        address=at("head"),
        blocks=ceil_div(spec.vocab, config.key_block),
        tiles=layout.tiles(spec.hidden, config),
        inputs=spec.hidden,
        inv_n=1 / spec.hidden,
        eps=spec.norm_eps,
        logits_address=program.logits_address,
        logits_stride=program.logits_stride,
        rows=spec.vocab,
    )
    code += encode(Opcode.END)
    return code
