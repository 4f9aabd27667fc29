"""Targets of the ternary models that people run: weights with a scale for groups, for blocks of rows and for matrices, in every type of file and
every architecture that is read, their chat templates, images and programs."""

from __future__ import annotations

import io
import tempfile
from contextlib import redirect_stderr, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

from tellme.golden import schedule, ternary
from tellme.golden.check import problem
from tellme.golden.config import TINY, AcceleratorConfig
from tellme.golden.model import ModelWeights
from tellme.golden.program import DESCRIPTOR_BYTES
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.checkpoints.gguf import read_gguf
from tellme.host.errors import UserError
from tellme.host.image.file import Image
from tellme.host.image.model import Model, convert
from tellme.host.image.screening import with_head
from tellme.host.machine.program import compile_program
from tellme.host.text.template import ChatTemplate
from tellme.host.text.tokenizer import Files, Tokenizer
from tests.fuzz.driver import Part, Target
from tests.fuzz.parts import GGUF, JSON, SAFETENSORS, image_header, program_fields
from tests.host.checkpoints.gguf_support import PQ2_0, PTQ1_0, Q2_0, Q2_0_LEGACY, write_gguf
from tests.host.support import config_json, tensors_of, write_folder
from tests.models import PARTS, random_weights, small_spec

GROUPED = replace(TINY, weight_format="grouped", ternary_head=True)
PLAIN: dict[str, Any] = dict(layers=1, heads=2, kv_heads=1, attn_sub_norm=False, ffn_sub_norm=False, activation="silu")
QWEN3: dict[str, Any] = PLAIN | dict(qk_norm=True, rope_theta=1e6, norm_eps=1e-6)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32.0, "beta_slow": 1.0}

THINKING = b"""{%- if tools %}{{ '<|im_start|>system\\n' }}{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{%- endif %}
{%- for tool in tools %}{{ "\\n" }}{{ tool | tojson }}{%- endfor %}{{ '<|im_end|>\\n' }}{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}
{%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
{%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}{%- endif %}{%- endfor %}
{%- for message in messages %}{%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
{%- if message.role == "assistant" %}{%- set reasoning_content = '' %}
{%- if message.reasoning_content is string %}{%- set reasoning_content = message.reasoning_content %}
{%- elif '</think>' in content %}{%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
{%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}{{ '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content }}
{%- else %}{{ '<|im_start|>' + message.role + '\\n' + content }}{%- endif %}{{ '<|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"""
SHORT = b"{% for m in messages %}{{ m.role + ': ' + m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
"""Of checkpoints, which are read thousands of times: the long one takes milliseconds to compile."""
CONVERSATION = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "the"},
    {"role": "assistant", "content": "<think>\nan\n</think>\n\nin"},
    {"role": "user", "content": "an"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}]  # fmt: skip

# ---- models ----------------------------------------------------------------------------------------------------------


def scaled(weights: ModelWeights, size: int) -> ModelWeights:
    """The model with a scale of float16 for every `size` inputs of a row, among them groups of zeros; `size` 0: for every half of the rows (TriLM)."""
    rng = np.random.default_rng(1)
    layers = []
    for layer in weights.layers:
        parts: dict[str, Any] = {}
        for name in PARTS:
            signs = np.sign(getattr(layer, name)).astype(np.int8)
            n, k = signs.shape
            shape = (n, k // size) if size else (2, 1)
            scales = (0.02 * 2.0 ** rng.uniform(-3, 0, shape)).astype(np.float16).astype(np.float32)
            if size:
                signs[3, :size] = 0
            else:
                scales = np.repeat(scales, n // 2, axis=0)
            parts[name], unit = ternary.group_integers(signs, scales, size or k)
            parts[f"{name}_scale"] = float(unit)
        layers.append(replace(layer, **parts))
    return replace(weights, spec=replace(weights.spec, group_scales=True), layers=layers)


def byte_level(w: gguf.GGUFWriter) -> None:
    """A byte-level vocabulary of 112 pieces with a chat template, as Qwen3's files have it."""
    letters = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]
    pairs = [("t", "h"), ("th", "e"), ("Ġ", "a"), ("i", "n"), ("a", "n")]
    special = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    texts = [*letters, *("".join(p) for p in pairs), *special]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list([*texts, *(f"[PAD{i}]" for i in range(len(texts), 112))])
    w.add_token_types([1] * (len(letters) + len(pairs)) + [3, 3, 4, 4] + [5] * (112 - len(texts)))
    w.add_token_merges([" ".join(p) for p in pairs])
    w.add_eos_token_id(texts.index("<|im_end|>"))
    w.add_add_bos_token(False)
    w.add_chat_template(SHORT.decode())


def gguf_files() -> dict[str, bytes]:
    """One small file of each type whose blocks have scales of their own, and of floats that are ternary in groups."""
    small = small_spec(**QWEN3, hidden=128, head_dim=64, ffn=128, vocab=112)
    large = small_spec(**QWEN3, hidden=256, head_dim=128, ffn=256, vocab=112, tied=False)
    llama = small_spec(**PLAIN, hidden=128, head_dim=64, ffn=128, vocab=112, tied=False)
    yarn = {
        "arch__rope__scaling__type": "yarn",
        "arch__rope__scaling__factor": 4.0,
        "arch__rope__scaling__original_context_length": 16,
    }
    with tempfile.TemporaryDirectory() as name:

        def made(kind: int, spec: Any, size: int, architecture: str = "qwen3", **more: Any) -> bytes:
            weights = scaled(random_weights(spec, 1), size)
            return write_gguf(Path(name) / "m", weights, architecture, kind, vocabulary=byte_level, **more).read_bytes()

        rows = np.random.default_rng(2).integers(-1, 2, (112, 128)).astype(np.float32)
        of_rows = {"token_embd.weight": (rows, PQ2_0)}
        return {
            "q2_0": made(Q2_0, small, 64, **yarn),
            "q2_0-128": made(Q2_0_LEGACY, small, 128),
            "pq2_0": made(PQ2_0, small, 128, tensors=of_rows),
            "ptq1_0": made(PTQ1_0, small, 128, embedding=T.F16),
            "tq2_0-groups": made(T.TQ2_0, large, 256, embedding=T.Q8_0),
            "tq1_0-groups": made(T.TQ1_0, large, 256, embedding=T.F16),
            "f16-groups": made(T.F16, small, 64, embedding=T.F16),
            "f16-trilm": made(T.F16, llama, 0, "llama", embedding=T.F16),
        }  # fmt: skip


def folders() -> dict[str, dict[str, bytes]]:
    """A small Hugging Face folder of each family: packed with one scale a matrix, or unpacked."""
    shape: dict[str, Any] = dict(hidden=64, head_dim=64, ffn=64, vocab=112)  # the heads are wider than the model
    qwen3, llama = small_spec(**QWEN3, **shape), small_spec(**PLAIN, **shape, tied=False)
    packed = random_weights(qwen3, 1), random_weights(llama, 1)
    divided = {
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "bitlinear",
            "modules_to_not_convert": ["lm_head"],
        }
    }
    tokenizer = _tokenizer().tokenizer
    with tempfile.TemporaryDirectory() as name:

        def made(weights: ModelWeights, tensors: dict[str, Any], **config: Any) -> dict[str, bytes]:
            folder = Path(tempfile.mkdtemp(dir=name))
            write_folder(folder, config_json(weights.spec, **config), tensors)
            (folder / "tokenizer.json").write_bytes(tokenizer)
            (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>", "add_bos_token": false}')
            (folder / "chat_template.jinja").write_bytes(SHORT)
            (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2], "do_sample": true, "top_k": 20}')
            return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}

        groups, rows = scaled(packed[0], 64), scaled(packed[1], 0)
        return {
            "qwen3": made(groups, tensors_of(groups), rope_scaling=YARN),
            "qwen3-packed": made(packed[0], tensors_of(packed[0])),
            "llama-packed": made(packed[1], tensors_of(packed[1])),
            "falcon-e": made(packed[1], tensors_of(packed[1], divide=True), **divided, rope_scaling={"type": "linear", "factor": 2.0}),
            "trilm": made(rows, tensors_of(rows), attention_bias=False, mlp_bias=False),
        }  # fmt: skip


def _tokenizer() -> Files:
    """The vocabulary of `byte_level` as tokenizer.json."""
    with tempfile.TemporaryDirectory() as name:
        spec = small_spec(**QWEN3, hidden=128, head_dim=64, ffn=128, vocab=112)
        path = write_gguf(Path(name) / "m", random_weights(spec, 1), "qwen3", Q2_0, vocabulary=byte_level)
        return read_gguf(path).tokenizer


def _image() -> bytes:
    """An image with group scales, QK-norm and a ternary head."""
    spec = replace(small_spec(**QWEN3, hidden=128, head_dim=64, ffn=128, vocab=128), max_context=64)
    weights = scaled(random_weights(spec, 1), 64)
    tensors = tensors_of(weights)
    rows = np.random.default_rng(3).integers(-1, 2, (128, 128)) * np.float32(0.03125)
    tensors["model.embed_tokens.weight"] = rows.astype(np.float16)
    with tempfile.TemporaryDirectory() as name:
        folder = write_folder(Path(name) / "m", config_json(spec, quantization_config=None, rope_scaling=YARN), tensors)
        (folder / "tokenizer.json").write_bytes(_tokenizer().tokenizer)
        made = with_head(read_checkpoint(folder), GROUPED, None)
        assert made.weights.spec.ternary_head and made.weights.spec.group_scales
        convert(made, folder / "m.tlm", GROUPED)
        return (folder / "m.tlm").read_bytes()


def program_of(image: bytes, config: AcceleratorConfig) -> bytes:
    """The program of an image for an accelerator, of two slots and 64 positions: what `read_program` takes."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "m.tlm").write_bytes(image)
        with Model.open(Path(name) / "m.tlm", config) as opened:
            return compile_program(opened, config, slots=2, context=64).code


# ---- readers ---------------------------------------------------------------------------------------------------------


def read_gguf_file(folder: Path) -> None:
    """Opens a GGUF file, reads every layer and uses its vocabulary and template."""
    checkpoint = read_gguf(folder / "m.gguf")
    list(checkpoint.weights.layers)
    tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.weights.spec.vocab)
    tokenizer.encode("the <s> an\n")
    with suppress(UserError):  # not all files have a template
        tokenizer.encode_chat(CONVERSATION)


def read_family(folder: Path) -> None:
    """Converts a checkpoint as `tellme convert` does, and uses its vocabulary and template."""
    with redirect_stderr(io.StringIO()):  # notes
        opened = Model.open(folder, GROUPED, prepare=lambda c: with_head(c, GROUPED, None))
    with opened:
        list(opened.weights().layers)
        tokenizer = opened.tokenizer
        tokenizer.encode("the an\n")
        with suppress(UserError):
            tokenizer.encode_chat(CONVERSATION)


def read_grouped_image(folder: Path) -> None:
    """Opens an image unchecked, and uses all of it."""
    with Model(Image(folder / "m.tlm", verify=False), GROUPED) as opened:
        weights = opened.weights()
        list(weights.layers)
        compile_program(opened, GROUPED)
        opened.embed([0, opened.spec.vocab - 1])
        opened.check_weights()


def read_program(folder: Path, config: AcceleratorConfig) -> None:
    """What golden, and with it the RTL, thinks of a program; where it finds nothing wrong, what the program reads."""
    code = (folder / "program").read_bytes()
    code = code[: len(code) // DESCRIPTOR_BYTES * DESCRIPTOR_BYTES]
    wrong = problem(code, config, context=64, slots=2)
    if wrong is not None:
        assert 0 <= wrong[0] <= len(code) // DESCRIPTOR_BYTES
        raise UserError(f"descriptor {wrong[0]}: {wrong[1]}")
    for segment in schedule.segments(config, code, 0, [3, 4], [1, 1], 1):
        assert segment.beats >= 0


def read_thinking(folder: Path) -> None:
    """Renders a conversation with thoughts, with tools and without."""
    template = ChatTemplate((folder / "template").read_text(errors="replace"), {"eos_token": "<|im_end|>"})
    for tools in (None, TOOLS):
        template.render(CONVERSATION, tools=tools)


def families() -> list[Target]:
    """Every target of the new types and architectures."""
    image = _image()
    made = []
    for name, files in folders().items():
        parts = {"model.safetensors": SAFETENSORS} | {n: JSON for n in files if n.endswith(".json")}
        damaged = ("config.json", "config.json", "model.safetensors", "generation_config.json", "tokenizer_config.json")
        made.append(Target(f"family {name}", files, read_family, parts, damaged))
    return [
        *(
            Target(f"family gguf {kind}", {"m.gguf": data}, read_gguf_file, {"m.gguf": GGUF}, header=data.rindex(b"weight") + 64)
            for kind, data in gguf_files().items()
        ),
        *made,
        Target("family image", {"m.tlm": image}, read_grouped_image, {"m.tlm": (Part(image_header),)}),
        Target("family program", {"program": program_of(image, GROUPED)}, partial(read_program, config=GROUPED), {"program": (Part(program_fields, "tree"),)}, header=1 << 12),
        Target("family template", {"template": THINKING}, read_thinking, header=1 << 12),
    ]  # fmt: skip
