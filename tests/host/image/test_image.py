"""Images keep what is written, bit for bit, and every kind of damage is found."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import tellme.host.cli
import tellme.host.image.model
from tellme.golden.boards import build_name
from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.golden.layout import row_block, unpack_linear
from tellme.golden.model import ModelWeights
from tellme.golden.registers import VERSION
from tellme.golden.spec import STEPS
from tellme.host.checkpoints.checkpoint import read_checkpoint, with_int8_inputs
from tellme.host.errors import UserError
from tellme.host.image.file import PAGE, Image, Plan, write_image
from tellme.host.image.model import Model, convert
from tests.formats import TwoBits, with_format
from tests.fuzz.targets import image_header
from tests.host.checkpoints.test_checkpoint import LFS, assert_same
from tests.host.checkpoints.test_checkpoint import PAGE as WEB_PAGE
from tests.host.support import DEMO, WORD, start, write_checkpoint
from tests.models import small_spec

CONFIGS = [TINY, WORD, KV260]


@pytest.fixture(scope="module")
def demo_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "demo.tlm"
    convert(read_checkpoint(DEMO), path, TINY)
    return path


QWEN3 = small_spec(qk_norm=True, activation="silu", attn_sub_norm=False, ffn_sub_norm=False, head_dim=64, vocab=300)


@pytest.mark.parametrize("config", [TINY, WORD], ids=lambda c: c.name)
def test_gains_of_heads_come_back_bit_for_bit(tmp_path: Path, config: AcceleratorConfig):
    """A Qwen3 folder, through an image, gives the logits of its weights; no tensor of it is left over."""
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "m", QWEN3, tie_word_embeddings=True))
    convert(checkpoint, tmp_path / "m.tlm", config)
    model = Model(Image(tmp_path / "m.tlm"), config)
    assert model.spec == QWEN3 and {"q_norm", "k_norm"} <= set(model.spec.norms)
    assert_same(model.weights(), checkpoint.weights)
    for layer, read in zip(checkpoint.weights.layers, model.weights().layers, strict=True):
        assert (layer.q_norm == read.q_norm).all() and (layer.k_norm == read.k_norm).all()
        assert (layer.q_norm != layer.k_norm).any()


def test_images_of_models_without_qk_norm_do_not_name_it(demo_image: Path):
    assert "qk_norm" not in Image(demo_image).model["spec"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_sliding_window": True}, "use_sliding_window is set; attention to a part of the context"),
        ({"attention_bias": True}, "attention_bias is set"),
        ({"head_dim": None}, r"q_proj.weight has shape \[64, 64\], config.json asks for \[128, 64\]"),  # 128 by default
        (
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
            "self_attn.k_norm.weight and 3 more: no place",
        ),
        ({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}, "model_type is 'qwen3_moe'"),
    ],
)
def test_what_qwen3_cannot_be_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str):
    folder = write_checkpoint(tmp_path / "m", QWEN3, **changes)
    with pytest.raises(UserError, match=message) as e:
        list(read_checkpoint(folder).weights.layers)
    assert "\n" not in str(e.value)


def edit(source: Path, target: Path, offset: int, value: int | None = None) -> Path:
    data = bytearray(source.read_bytes())
    data[offset] = data[offset] ^ 1 if value is None else value
    target.write_bytes(bytes(data))
    return target


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sub_norms", [True, False])
def test_weights_come_back_bit_for_bit(tmp_path: Path, config: AcceleratorConfig, tied: bool, sub_norms: bool):
    spec = small_spec(tied=tied, attn_sub_norm=sub_norms, ffn_sub_norm=sub_norms, vocab=300)
    checkpoint = with_int8_inputs(read_checkpoint(write_checkpoint(tmp_path / "m", spec)))
    convert(checkpoint, tmp_path / "m.tlm", config)
    model = Model(Image(tmp_path / "m.tlm"), config)
    assert_same(model.weights(), checkpoint.weights)
    assert (model.name, model.eos_ids) == ("m", (1,))
    for token in (0, 1, config.key_block - 1, config.key_block, 299):
        if token < spec.vocab:
            row, scale = model.embedding_row(token)
            np.testing.assert_array_equal(row, checkpoint.weights.embedding[token])
            assert scale == checkpoint.weights.embedding_scales[token]
    with pytest.raises(UserError, match=r"the prompt has token \d+, but the model's vocabulary is 300"):
        model.tokenizer.encode("Once")
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_each_port_holds_its_columns_of_every_beat_in_one_run_of_the_file(tmp_path: Path, config: AcceleratorConfig):
    rng = np.random.default_rng(1)
    a, b = (rng.integers(0, 256, (n, config.beat_bytes), dtype=np.uint8) for n in (3, 300))
    plans = [Plan("a", 3, lambda: ({"k": 1}, [a])), Plan("b", 300, lambda: ({}, [b[:7], b[7:8], b[8:]]))]
    write_image(tmp_path / "x.tlm", config=config, model={"m": 1}, sections=plans, blobs={"c": b"abc", "d": b""})
    image = Image(tmp_path / "x.tlm")
    np.testing.assert_array_equal(image.section("a"), a)
    np.testing.assert_array_equal(image.section("b"), b)
    assert (image.beats, image.sections["b"].address, image.sections["a"].info) == (303, 3, {"k": 1})
    assert (image.blob("c").tobytes(), image.blob("d").tobytes()) == (b"abc", b"")
    raw = (tmp_path / "x.tlm").read_bytes()
    start = -(-(24 + struct.unpack("<I", raw[12:16])[0]) // PAGE) * PAGE
    for port in range(config.ports):
        column = np.concatenate([a, b])[:, port * config.port_bytes : (port + 1) * config.port_bytes].tobytes()
        assert raw[start : start + len(column)] == column
        start += -(-len(column) // PAGE) * PAGE


@pytest.mark.parametrize(("rows", "expected"), [(8, 8), (128, 128), (136, 72), (256, 128), (2 * 384, 128), (264, 88)])
def test_row_blocks_are_even_and_within_the_accumulators(rows: int, expected: int):
    n = row_block(rows, TINY)
    assert n == expected and n % 8 == 0 and n <= TINY.block_rows and -(-rows // n) == -(-rows // TINY.block_rows)


def test_matrices_are_stored_in_those_blocks(demo_image: Path):
    image = Image(demo_image)
    s = image.sections["2.down"]
    assert s.info["block_rows"] == 128 and s.info["rows"] == 128 and s.info["inputs"] == 384
    data = image.section("2.down")[s.info["gain_beats"] :]
    got = unpack_linear(data, 128, 384, TINY, 128)
    np.testing.assert_array_equal(got, read_checkpoint(DEMO).weights.layers[2].down)


# ---- damage ----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_found_wherever_it_is(demo_image: Path, tmp_path: Path):
    image = Image(demo_image)
    raw = demo_image.read_bytes()
    data = -(-(24 + struct.unpack("<I", raw[12:16])[0]) // PAGE) * PAGE
    for name in ("input_norm", "0.qkv", "4.down", "head"):
        s = image.sections[name]
        for beat in (s.address, s.address + s.beats - 1):
            bad = edit(demo_image, tmp_path / "bad.tlm", data + beat * TINY.port_bytes + 3)
            with pytest.raises(
                UserError, match=f"section '{name}' is damaged .checksum.; convert the checkpoint again"
            ):
                Image(bad)
            assert Image(bad, verify=False).beats == image.beats
    with pytest.raises(UserError, match="part 'tokenizer.json' is damaged"):
        Image(edit(demo_image, tmp_path / "bad.tlm", data + -(-image.beats * TINY.port_bytes // PAGE) * PAGE))
    with pytest.raises(UserError, match="its header is damaged"):
        Image(edit(demo_image, tmp_path / "bad.tlm", 40))


def test_other_files_and_versions_are_refused(demo_image: Path, tmp_path: Path):
    with pytest.raises(UserError, match="is not a .tlm image; make one with `tellme convert`"):
        Image(edit(demo_image, tmp_path / "bad.tlm", 0))
    with pytest.raises(UserError, match="is a .tlm image of version 9, this program reads version 2; convert"):
        Image(edit(demo_image, tmp_path / "bad.tlm", 8, 9))
    (tmp_path / "empty.tlm").write_bytes(b"")
    with pytest.raises(UserError, match="is not a .tlm image"):
        Image(tmp_path / "empty.tlm")
    with pytest.raises(UserError, match="cannot be read"):
        Image(tmp_path / "none.tlm")


@pytest.mark.parametrize("keep", [100, 5000, -1])
def test_truncated_images_are_refused(demo_image: Path, tmp_path: Path, keep: int):
    (tmp_path / "bad.tlm").write_bytes(demo_image.read_bytes()[:keep])
    with pytest.raises(UserError, match="truncated"):
        Image(tmp_path / "bad.tlm")


def test_appended_bytes_are_refused(demo_image: Path, tmp_path: Path):
    (tmp_path / "bad.tlm").write_bytes(demo_image.read_bytes() + b"x")
    with pytest.raises(UserError, match="or something was appended"):
        Image(tmp_path / "bad.tlm")


def test_a_board_with_other_beats_is_refused(demo_image: Path):
    with pytest.raises(UserError, match="made for ports 1, but board 'kv260' has 4; convert .* --board kv260"):
        Model(Image(demo_image), KV260)


def test_header_says_what_the_documentation_says(demo_image: Path):
    raw = demo_image.read_bytes()
    magic, version, length, crc, zero = struct.unpack("<8sIIII", raw[:24])
    header = raw[24 : 24 + length]
    assert (magic, version, crc, zero) == (b"TELLMETM", 2, zlib.crc32(header), 0)
    head = json.loads(header)
    assert set(head) == {"geometry", "made_for", "beats", "sections", "blobs", "model"}
    assert head["geometry"] == {"ports": 1, "port_bytes": 16, "key_tile": 32}
    assert sum(s["beats"] for s in head["sections"]) == head["beats"]


def sections(change: Any) -> Any:
    """A change of the header that applies to its sections."""
    return lambda head: change(head["sections"])


def swap_beats(s: Any) -> None:
    """Lengths of the first two sections exchanged, everything else right for it."""
    s[0]["beats"], s[1]["beats"] = s[1]["beats"], s[0]["beats"]
    s[1]["address"] = s[0]["beats"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(geometry=[]), "geometry must be an object"),
        (lambda h: h["geometry"].update(ports=0), "ports must be positive"),
        (lambda h: h["geometry"].update(ports=65), "ports must be an integer from 0 to 64"),
        (lambda h: h["geometry"].update(port_bytes="16"), "port_bytes must be an integer"),
        (lambda h: h.update(beats=1 << 60), "beats must be an integer from 0 to"),
        (lambda h: h.update(beats=h["beats"] + 1), "sections have .* beats of"),
        (lambda h: h.update(model=None), "model must be an object"),
        (lambda h: h.update(sections={}), "sections must be a list of objects"),
        (sections(lambda s: s[1].update(name=s[0]["name"])), "section 'input_norm' is there twice"),
        (sections(lambda s: s[1].update(address=0)), "section '0.qkv' must start at beat 32"),
        (sections(lambda s: s[1].update(info=0)), "info of section '0.qkv' must be an object"),
        (sections(lambda s: s[1].update(crc32=[])), "section '0.qkv' must have a checksum for each port"),
        (sections(lambda s: s[1].update(crc32=["zzzzzzzz"])), "a checksum of section '0.qkv' must have 8 hexadecimal digits"),
        (sections(lambda s: s[1].update(crc32=[7])), "a checksum of section '0.qkv' must have 8 hexadecimal digits"),
        (sections(lambda s: s[1].update(beats=-1)), "beats of section '0.qkv' must be an integer from 0 to"),
        (sections(lambda s: s[1].update(name=5)), "the name of a section must be a string"),
        (lambda h: h["blobs"][1].update(name="tokenizer.json"), "part 'tokenizer.json' is there twice"),
        (lambda h: h["blobs"][1].update(offset=1), "part 'tokenizer_config.json' must start at byte"),
        (lambda h: h["blobs"][0].update(bytes=1 << 50), "part 'tokenizer_config.json' must start at byte"),
        (lambda h: h["model"].update(name=1), "name of model must be a string"),
        (lambda h: h["model"].update(eos_ids=["1"]), "eos_ids of model must be a list of integers"),
        (lambda h: h["model"].update(spec=3), "spec must be an object"),
        (lambda h: h["model"]["spec"].update(colour=3), "spec has an unknown field 'colour'"),
        (lambda h: h["model"]["spec"].update(hidden="64"), "hidden of spec must be of type int, not '64'"),
        (lambda h: h["model"]["spec"].update(tied=1), "tied of spec must be of type bool, not 1"),
        (lambda h: h["model"]["spec"].update(rope_theta=-1), "rope_theta of spec must be of type float, not -1"),
        (lambda h: h["model"]["spec"].update(rope_scaling=[]), "rope_scaling of spec must be an object of known fields"),
        (lambda h: h["model"]["spec"].update(rope_scaling={"kind": "linear"}), "rope_scaling of spec .* with kind and factor"),
        (lambda h: h["model"]["spec"].update(rope_scaling={"kind": "linear", "factor": "x"}), "rope_scaling of spec must hold positive numbers"),
        (lambda h: h["model"]["spec"].pop("hidden"), "spec is incomplete"),
        (lambda h: h["model"]["spec"].update(head_dim=40), "head_dim must be a multiple of 32, not 40"),
        (lambda h: h["model"]["spec"].update(layers=1 << 30), "it has 27 sections, the model needs 5368709122"),
        (sections(swap_beats), "section 'input_norm' of 512 beats is where 'input_norm' of 32 belongs"),
        (sections(lambda s: s[2].update(name="x")), "section 'x' of 32 beats is where '0.attention' of 32 belongs"),
        (sections(lambda s: s[1]["info"].update(rows=8)), "rows of section '0.qkv' must be 256, not 8"),
        (sections(lambda s: s[1]["info"].update(block_rows=12)), "block_rows of section '0.qkv' must be a multiple of 8"),
        (sections(lambda s: s[1]["info"].update(scales=[1.0])), "section '0.qkv' must have 3 positive scales and block_rows"),
        (sections(lambda s: s[1]["info"].update(scales=[1.0, 2.0, -1])), "section '0.qkv' must have 3 positive scales"),
        (sections(lambda s: s[1]["info"].update(scales=[1.0, 2.0, 0])), "section '0.qkv' must have 3 positive scales"),
        (sections(lambda s: s[1]["info"].update(scales=[1.0, 2.0, 3.45e38])), "section '0.qkv' must have 3 positive scales"),
        (sections(lambda s: s[1]["info"].update(scales=[1.0, 2.0, float("nan")])), "section '0.qkv' must have 3 positive scales"),
    ],
)  # fmt: skip
def test_a_header_that_says_something_else_is_refused(demo_image: Path, tmp_path: Path, change: Any, message: str):
    """Its checksum is right: whoever wrote it wrote it wrongly."""
    text, join = image_header(demo_image.read_bytes())
    head = json.loads(text)
    change(head)
    (tmp_path / "bad.tlm").write_bytes(join(json.dumps(head).encode()))
    with pytest.raises(UserError, match=f"(header is broken, )?{message}") as e:
        Model(Image(tmp_path / "bad.tlm", verify=False), TINY)
    assert str(e.value).isprintable()


def test_damaged_weights_of_an_unchecked_image_are_named(demo_image: Path, tmp_path: Path):
    raw = demo_image.read_bytes()
    start = -(-(24 + struct.unpack("<I", raw[12:16])[0]) // PAGE) * PAGE
    at = start + Image(demo_image).sections["0.qkv"].address * TINY.port_bytes
    bad = Model(Image(edit(demo_image, tmp_path / "bad.tlm", at, 250), verify=False), TINY)
    with pytest.raises(
        UserError, match=r"bad.tlm: section '0.qkv': a byte of packed weights must be at most 242; found 250 at"
    ):
        list(bad.weights().layers)


PARTS_OF = {"q": "q of section '1.qkv'", "k": "k of section '1.qkv'", "v": "v of section '1.qkv'", "o": "o of section '1.o'",
            "gate": "gate of section '1.gate'", "up": "up of section '1.gate'", "down": "down of section '1.down'"}  # fmt: skip


def damaged_image(tmp_path: Path, config: AcceleratorConfig, change: Any) -> Path:
    """An image of changed weights, as a version that took everything would have written it: its checksums are right."""
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "m", small_spec(tied=False)))
    convert(
        replace(checkpoint, weights=change(replace(checkpoint.weights, layers=list(checkpoint.weights.layers)))),
        tmp_path / "x.tlm",
        config,
    )
    return tmp_path / "x.tlm"


def with_layer(weights: ModelWeights, **changes: Any) -> ModelWeights:
    return replace(weights, layers=[weights.layers[0], replace(weights.layers[1], **changes)])


@pytest.mark.parametrize("config", [TINY, WORD, KV260], ids=lambda c: c.name)
@pytest.mark.parametrize("part", PARTS_OF)
@pytest.mark.parametrize(("value", "name"), [(-1, "-1"), (0, "zeros"), (1, r"\+1")])
def test_damaged_matrices_of_an_image_are_named(
    tmp_path: Path, config: AcceleratorConfig, part: str, value: int, name: str
):
    def change(weights: ModelWeights) -> ModelWeights:
        return with_layer(weights, **{part: np.full_like(getattr(weights.layers[1], part), value)})

    path = damaged_image(tmp_path, config, change)
    message = f"x.tlm: {PARTS_OF[part]} holds only {name}; the checkpoint is broken .damaged."
    Image(path).verify()
    with pytest.raises(UserError, match=message):
        Model.open(path, config)
    with pytest.raises(UserError, match=message):
        Model(Image(path), config).weights()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: with_layer(w, input_norm=w.norm * 0), "gain of section '0.down' holds only zeros"),
        (lambda w: with_layer(w, attn_norm=np.zeros(128, np.float32)), "gain of section '1.attention' holds only zeros"),
        (lambda w: with_layer(w, ffn_norm=np.full(96, np.nan, np.float32)), "gain of section '1.gate' holds NaN or infinity"),
        (lambda w: replace(w, norm=w.norm * 0), "gain of section '1.down' holds only zeros"),
        (lambda w: replace(w, head=w.head * 0), "x.tlm: head, by rows, holds only zeros"),
        (lambda w: replace(w, head=w.head * (np.arange(50) < 25)[:, None].astype(np.int8)), "head, by rows, has 25 zeros among its 50"),
        (lambda w: replace(w, head_scales=w.head_scales * np.float32(np.nan)), "scales of the head holds NaN or infinity"),
        (lambda w: replace(w, embedding=w.embedding * 0, inputs=None), "embedding, by rows, holds only zeros"),
        (lambda w: replace(w, embedding_scales=-w.embedding_scales, inputs=None), "a scale of the embedding is negative"),
        (lambda w: w, None),
    ],
)  # fmt: skip
def test_damaged_norms_heads_and_embeddings_of_an_image_are_named(tmp_path: Path, change: Any, message: str | None):
    path = damaged_image(tmp_path, TINY, change)
    if message is None:
        Model.open(path, TINY).close()
        return
    with pytest.raises(UserError, match=message):
        Model.open(path, TINY)


def test_commands_refuse_an_image_of_damaged_weights(tmp_path: Path):
    path = damaged_image(tmp_path, TINY, lambda w: with_layer(w, up=np.full((96, 64), -1, np.int8)))
    for command in (
        ("info", str(path)),
        ("info", str(path), "--verify"),
        ("run", "--backend", "golden", "--model", str(path), "--prompt", "a"),
    ):
        r = CliRunner().invoke(tellme.host.cli.app, list(command))
        assert (
            r.exit_code == 2 and "up of section '1.gate' holds only -1; the checkpoint is broken (damaged)" in r.stderr
        )
        assert not r.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS, "is not a .tlm image: it is a Git LFS pointer and not the file itself"),
        (WEB_PAGE, "is not a .tlm image: it is a web page"),
        (b"PK\x03\x04" + bytes(60), "is not a .tlm image: it is a PyTorch file"),
        (b"", "is not a .tlm image; make one with `tellme convert`"),
        (
            struct.pack("<Q", 60) + b'{"a":' + bytes(60),
            "is not a .tlm image: it is a safetensors file; give the folder that holds it",
        ),
    ],
)
def test_a_file_of_another_kind_is_named_for_what_it_is(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "x.tlm").write_bytes(content)
    with pytest.raises(UserError, match=message):
        Model.open(tmp_path / "x.tlm", TINY)
    r = CliRunner().invoke(tellme.host.cli.app, ["convert", str(tmp_path / "x.tlm"), str(tmp_path / "y.tlm")])
    assert r.exit_code == 2 and r.stderr.count("\n") == 1
    assert (": it is" in message) == ("is not a checkpoint folder or .gguf file: it is" in r.stderr)


def test_a_part_that_is_missing_is_named(tmp_path: Path):
    write_image(tmp_path / "x.tlm", config=TINY, model={}, sections=[], blobs={})
    with pytest.raises(UserError, match="its part 'tokenizer.json' is missing; convert the checkpoint again"):
        Image(tmp_path / "x.tlm").blob("tokenizer.json")
    with pytest.raises(UserError, match="is not a file; give a .tlm image"):
        Image(tmp_path)


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_image_and_no_rubbish(tmp_path: Path):
    target = tmp_path / "x.tlm"
    target.write_bytes(b"old")

    def fail() -> Any:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"x.tlm: cannot be written \(No space left on device\)"):
        write_image(target, config=TINY, model={}, sections=[Plan("a", 1, fail)], blobs={})
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.tlm"]


def test_a_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be written"):
        write_image(tmp_path / "no" / "x.tlm", config=TINY, model={}, sections=[], blobs={})


def test_the_image_of_a_checkpoint_has_no_name_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with Model.open(DEMO, TINY) as model:
        assert list(tmp_path.iterdir()) == [] and model.image.path == DEMO
        expected = model.embed([5])
    np.testing.assert_array_equal(model.embed([5]), expected)
    script = (
        "import os, signal; from tellme.golden.config import TINY; from tellme.host.image.model import Model, demo_folder\n"
        "import tellme.host.image.file as i; write = i.write_stream; model = Model.open(demo_folder(), TINY)\n"
        "print(os.listdir(os.environ['TMPDIR']), flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -9 and killed.stdout == "[]\n" and list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch):
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tellme.host.image.model, "write_stream", full)
    with pytest.raises(
        UserError, match=r"cannot be written there \(No space left on device\); convert the checkpoint first"
    ):
        Model.open(DEMO, TINY)


def test_an_open_image_stays_whole_while_its_file_is_written_again(tmp_path: Path):
    target = tmp_path / "x.tlm"
    contents = [np.full((300, TINY.beat_bytes), value, np.uint8) for value in (1, 2)]
    for content in contents:
        plans = [Plan("a", 300, lambda content=content: ({}, [content]))]
        write_image(target, config=TINY, model={}, sections=plans, blobs={})
        if content is contents[0]:
            old = Image(target)
    old.verify()
    np.testing.assert_array_equal(old.section("a"), contents[0])
    np.testing.assert_array_equal(Image(target).section("a"), contents[1])


def test_an_image_knows_the_build_it_was_made_for(
    demo_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same build: fits. Another build of the same formats and geometry: fits. Other formats: refused by both names."""
    image = Image(demo_image)
    assert image.build == build_name(TINY) and image.formats == VERSION
    image.require(TINY)
    wider = replace(TINY, name="wider", lanes=8)
    assert build_name(wider) != image.build
    image.require(wider)
    with monkeypatch.context() as m:
        m.setattr("tellme.host.image.file.VERSION", VERSION + 1)
        image.require(TINY)
        with pytest.raises(UserError) as e:
            image.require(wider)
    assert str(e.value) == (
        f"{demo_image}: was made for build {build_name(TINY)}, version {VERSION} of the memory formats, but "
        f"{build_name(wider)} has version {VERSION + 1}; convert the checkpoint with --board wider"
    )


def test_a_section_may_hold_the_gains_of_several_norms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "m", small_spec()))
    monkeypatch.setitem(STEPS, "o", replace(STEPS["o"], gain=("post_norm", "ffn_norm")))
    monkeypatch.setitem(STEPS, "gate", replace(STEPS["gate"], gain=()))
    convert(checkpoint, tmp_path / "m.tlm", TINY)
    model = Model.open(tmp_path / "m.tlm", TINY)
    assert model.image.sections["0.o"].info["gain_beats"] == (64 + 96) * 4 // 16
    assert model.image.sections["0.gate"].info["gain_beats"] == 0
    assert_same(model.weights(), checkpoint.weights)


# ---- another format of weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_images_and_programs_ask_the_format_how_weights_are_packed(tmp_path: Path, config: AcceleratorConfig):
    """Nothing of converter, image, driver and program is changed for it; the machine that runs it is `ReferenceMachine`."""
    other = with_format(config, TwoBits())
    folder = write_checkpoint(tmp_path / "m", small_spec(tied=False))
    accelerator, _, model = start(folder, other)
    plain, _, usual = start(folder, config)
    assert model.image.sections["0.o"].info["rows"] == 64
    assert (model.image.section("0.o") != usual.image.section("0.o")).any()
    assert_same(model.weights(), usual.weights())
    for tokens in ([3, 1, 4], [1]):
        got, want = (a.prefill(tokens, start=0, logits=True)[-1] for a in (accelerator, plain))
        assert got.logits is not None
        np.testing.assert_array_equal(got.logits, want.logits)


def test_damage_of_another_format_is_named_in_its_words(tmp_path: Path):
    other = with_format(TINY, TwoBits())
    path = damaged_image(tmp_path, other, lambda w: with_layer(w, up=-np.abs(w.layers[1].up) * 0 - 1))
    with pytest.raises(UserError, match=r"up of section '1.gate' holds only -1; the checkpoint is broken .damaged."):
        Model.open(path, other)
    convert(read_checkpoint(DEMO), tmp_path / "good.tlm", other)
    raw = (tmp_path / "good.tlm").read_bytes()
    at = -(-(24 + struct.unpack("<I", raw[12:16])[0]) // PAGE) * PAGE
    at += Image(tmp_path / "good.tlm").sections["0.qkv"].address * TINY.port_bytes
    bad = Model(Image(edit(tmp_path / "good.tlm", tmp_path / "bad.tlm", at + 1, 250), verify=False), other)
    with pytest.raises(
        UserError,
        match=r"bad.tlm: section '0.qkv': two bits of a byte must be at most 2; found 250 at row 0, byte 1; convert",
    ):
        bad.weights()
