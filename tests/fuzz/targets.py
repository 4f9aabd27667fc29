"""What is fuzzed. A new reader is one more `Target` in `targets`."""

from __future__ import annotations

import asyncio
import json
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import gguf
from gguf import GGMLQuantizationType as T

from tellme.golden.boards import BOARDS
from tellme.golden.config import PRESETS, TINY
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.configuration import resolve
from tellme.host.errors import UserError
from tellme.host.image.file import Image
from tellme.host.image.model import Model, convert
from tellme.host.machine.backends import GoldenBackend
from tellme.host.machine.passes import Pass
from tellme.host.machine.program import compile_program
from tellme.host.serve.app import Limits, Server
from tellme.host.serve.request import read as read_body
from tellme.host.serve.service import Service
from tellme.host.talk import prompt_cache
from tellme.host.talk.engine import Engine
from tellme.host.talk.session import KIND, VERSION, Session
from tellme.host.text.defaults import sampling_of
from tellme.host.text.sampling import Sampling
from tellme.host.text.template import ChatTemplate
from tellme.host.text.tokenizer import Files, Tokenizer
from tests.fuzz.driver import Part, Target
from tests.fuzz.families import families, program_of, read_gguf_file, read_program
from tests.fuzz.parts import GGUF, JSON, SAFETENSORS, image_header, npz_head, program_fields, toml, whole
from tests.host.checkpoints.gguf_support import model, write_gguf
from tests.host.support import config_json, tensors_of, write_folder
from tests.host.text.test_vocabulary import field, piece
from tests.models import random_weights, small_spec

SPEC = small_spec(hidden=32, layers=1, heads=2, kv_heads=1, ffn=32, vocab=8)
TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(8)}, "unk_token": "w2"},
}  # fmt: skip


def read_folder(folder: Path) -> None:
    """Opens a checkpoint and reads every layer."""
    list(read_checkpoint(folder).weights.layers)


def read_tokenizer(folder: Path) -> None:
    """Reads the tokenizer and uses it."""
    tokenizer = Tokenizer(Files.read(folder), SPEC.vocab)
    tokenizer.decode(tokenizer.encode("w3 w4"))


def read_image(folder: Path) -> None:
    """Opens an image unchecked, as the checksums of its content find everything else, and uses all of it."""
    model = Model(Image(folder / "m.tlm", verify=False), TINY)
    list(model.weights().layers)
    compile_program(model, TINY)
    model.embed([0, model.spec.vocab - 1])
    model.image.verify()


def _checkpoint(shards: int, *, tied: bool = True, latent: bool = False) -> dict[str, bytes]:
    spec = small_spec(hidden=32, layers=1, heads=2, kv_heads=1, ffn=32, vocab=8, tied=tied)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "m"
        scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        write_folder(
            folder, config_json(spec, rope_scaling=scaling), tensors_of(random_weights(spec, 1), latent=latent), shards
        )
        (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        (folder / "tokenizer_config.json").write_text('{"bos_token": {"content": "w0"}, "eos_token": "w1"}')
        (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
        return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def _image() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "m"
        folder.mkdir()
        for file, data in _checkpoint(1, tied=False).items():
            (folder / file).write_bytes(data)
        convert(read_checkpoint(folder), folder / "m.tlm", TINY)
        return (folder / "m.tlm").read_bytes()


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


def _gguf() -> dict[str, bytes]:
    """One small file of each kind."""
    shape: dict[str, Any] = dict(layers=1, hidden=128, heads=2, kv_heads=1, head_dim=64, ffn=128, vocab=112)
    small, norms = model(**shape), {"attn_sub_norm": False, "ffn_sub_norm": False, "activation": "silu"}
    tq: dict[str, Any] = shape | {"hidden": 256, "head_dim": 128, "ffn": 256}
    silu: dict[str, Any] = {"unit_scales": True, "arch__hidden_activation": "silu"}
    with tempfile.TemporaryDirectory() as name:
        at = Path(name)
        files = {
            "i2_s": write_gguf(at / "a", small, embedding=T.Q8_0, vocabulary=_byte_level),
            "i2_s-bitnet": write_gguf(at / "b", small, "bitnet", embedding=T.F16, vocabulary=_sentencepiece, **silu),
            "tq2_0": write_gguf(
                at / "c", model(**tq, **norms, tied=False), "llama", T.TQ2_0, embedding=T.Q8_0, vocabulary=_byte_level
            ),
            "tq1_0": write_gguf(
                at / "d", model(**tq, **norms), "llama", T.TQ1_0, embedding=T.F16, vocabulary=_sentencepiece
            ),
        }
        return {kind: path.read_bytes() for kind, path in files.items()}


def read_template(folder: Path) -> None:
    """Renders a chat with a template from a file that anybody may have written."""
    template = ChatTemplate(
        (folder / "template").read_text(errors="replace"), {"bos_token": "<s>", "eos_token": "</s>"}
    )
    template.render([{"role": "user", "content": "hello"}, {"role": "assistant", "content": "well"}])


def read_request(folder: Path) -> None:
    """A request's body, as the server takes it, for a chat and for a text."""
    try:
        data = json.loads((folder / "body").read_bytes())
    except (ValueError, RecursionError) as e:
        raise UserError(f"no JSON: {type(e).__name__}") from e
    chat = isinstance(data, dict) and "messages" in data
    read_body(data, chat=chat, default=Sampling(), model="m")


def read_configuration(folder: Path) -> None:
    """A configuration file, and what it means; a board that it describes is forgotten."""
    known = dict(BOARDS), dict(PRESETS)
    try:
        resolve(None, folder / "board.toml", ())
    finally:
        for table, before in zip((BOARDS, PRESETS), known, strict=True):
            table.clear()
            table.update(before)  # type: ignore[arg-type]


_TEMPLATE = b"""{{ bos_token }}{%- if messages[0].role == 'system' %}{% set system = messages[0]['content']|trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate') }}{% endif %}{{ '<|' + m.role + '|>' ~ system + m.content | trim }}{{ eos_token if not loop.last }}
{%- endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
_BODY = {
    "model": "m", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1, "repetition_penalty": 1.1, "seed": 3, "stop": ["a", "b"], "n": 2,
    "stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2, "messages": [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "4"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
}  # fmt: skip
_BOARD = b"""# a machine between two others
board = "tiny"
lanes = 8
attention_lanes = 4
max_context = 512
score_words = 4096
block_rows = 64
clock_mhz = 125
"""


_DESCRIBED = (Path(__file__).parents[2] / "docs" / "examples" / "zcu102.toml").read_bytes()
_DESCRIBED = _DESCRIBED.replace(b"[board]\n", b'[board]\nconstraints = "pins.xdc"\n')


def _prompt_cache(image: bytes) -> Target:
    """A prompt cache of the image, read by an engine with the golden model."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "m.tlm").write_bytes(image)
        opened = Model.open(Path(name) / "m.tlm", TINY)
        engine = Engine(GoldenBackend(opened.weights(), TINY, slots=1, context=16))
        engine.backend.run_pass(Pass.of([1, 2, 3], range(3)))
        engine.scheduler.slots[0].tokens = [1, 2, 3]
        prompt_cache.save(Path(name) / "prompt.npz", opened, engine)
        data = (Path(name) / "prompt.npz").read_bytes()

    def read(folder: Path) -> None:
        prompt_cache.load(folder / "prompt.npz", opened, engine)

    return Target("prompt cache", {"prompt.npz": data}, read, {"prompt.npz": (Part(npz_head),)})


def _conversation() -> Target:
    """A saved conversation, read by a session with a chat template."""
    config = json.dumps({"chat_template": _TEMPLATE.decode()}).encode()
    tokenizer = Tokenizer(Files(json.dumps(TOKENIZER).encode(), config), SPEC.vocab)
    session = Session(GoldenBackend(random_weights(SPEC, 1), TINY, slots=1, context=16), tokenizer)
    said = {
        "kind": KIND, "version": VERSION, "ids": [1, 2],
        "messages": [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2 w3"}, {"role": "assistant", "content": "w4"}],
    }  # fmt: skip

    def read(folder: Path) -> None:
        session.load(folder / "chat.json")

    return Target("conversation", {"chat.json": json.dumps(said).encode()}, read, {"chat.json": JSON})


def _sentencepiece_model() -> bytes:
    """A small tokenizer.model."""
    letters = [*map(chr, range(97, 123)), "\u2581", "th", "the", "\u2581a", "in", "an"]
    special = [piece(b"<unk>", kind=2), piece(b"<s>", kind=3), piece(b"</s>", kind=3)]
    trainer = field(2, field(3, 2)) + field(3, field(3, 1) + field(4, 0))
    return b"".join(special) + b"".join(piece(t.encode(), score=-float(i)) for i, t in enumerate(letters)) + trainer


def read_sentencepiece_folder(folder: Path) -> None:
    """A tokenizer that only a sentencepiece model and its companions make."""
    Tokenizer(Files.read(folder), 64).encode("the <s> an")


def read_defaults(folder: Path) -> None:
    """How a model wants to be sampled."""
    sampling_of(folder)


def _server() -> Target:
    """Whole requests to a server with the golden model: path, headers and body as one JSON tree."""
    config = json.dumps({"chat_template": _TEMPLATE.decode()}).encode()
    tokenizer = Tokenizer(Files(json.dumps(TOKENIZER).encode(), config), SPEC.vocab)
    engine = Engine(GoldenBackend(random_weights(SPEC, 1), TINY, slots=2, context=32))
    service = Service(engine, tokenizer, frozenset({1}), limit_s=5.0)
    app = Server(service, "m", sampling=Sampling(), limits=Limits(key="k")).app

    @cache
    def loop() -> asyncio.AbstractEventLoop:
        service.start()
        return asyncio.new_event_loop()

    asked = {
        "method": "POST", "path": "/v1/chat/completions", "query": "a=1",
        "headers": {"host": "localhost", "content-type": "application/json", "authorization": "Bearer k", "content-length": "9"},
        "body": {
            "model": "m", "max_tokens": 3, "temperature": 0.5, "top_k": 4, "seed": 3, "stop": ["w7"], "n": 2, "stream": False, "logprobs": True,
            "top_logprobs": 2, "messages": [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}, {"role": "user", "content": "w5"}],
        },
    }  # fmt: skip
    completion = {
        "model": "m",
        "prompt": "w3 w4",
        "max_tokens": 3,
        "logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    files = {
        "chat": json.dumps(asked).encode(),
        "completion": json.dumps(asked | {"path": "/v1/completions", "body": completion}).encode(),
        "tokenize": json.dumps(asked | {"path": "/tokenize", "body": {"content": "w3 w4"}}).encode(),
        "detokenize": json.dumps(asked | {"path": "/detokenize", "body": {"tokens": [3, 4]}}).encode(),
    }

    def latin(value: object) -> bytes:
        return str(value).encode("latin-1", "replace")

    async def call(asked: dict[str, Any]) -> int:
        """Status of the answer. What the server does not expect is raised again by Starlette."""
        headers = asked.get("headers")
        body = asked.get("body")
        text = body.encode(errors="replace") if isinstance(body, str) else json.dumps(body).encode()
        path = str(asked.get("path"))
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": str(asked.get("method")), "path": path,
            "raw_path": path.encode(errors="replace"), "root_path": "", "query_string": latin(asked.get("query")), "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
            "headers": [(latin(k).lower(), latin(v)) for k, v in headers.items()] if isinstance(headers, dict) else [],
        }  # fmt: skip
        given = [
            {"type": "http.request", "body": text[:100], "more_body": True},
            {"type": "http.request", "body": text[100:], "more_body": False},
        ]
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            if given:
                return given.pop(0)
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await app(scope, receive, send)
        return statuses[0]

    def read(folder: Path) -> None:
        found = {name: (folder / name).read_bytes() for name in files}
        for name in [n for n in files if found[n] != files[n]] or files:
            asked = json.loads(found[name])
            status = loop().run_until_complete(call(asked if isinstance(asked, dict) else {}))
            assert service.failure is None and status < 500, (status, service.failure)
            if status >= 400:
                raise UserError(f"{name}: status {status}")

    return Target("server", files, read, {name: (Part(whole, "tree"),) for name in files}, notation=True)


def targets() -> list[Target]:
    """Every target."""
    single, shards, latent = _checkpoint(1), _checkpoint(2, tied=False), _checkpoint(1, latent=True)
    configs = ("config.json", "generation_config.json")
    parts = {n: SAFETENSORS for n in (*single, *shards) if n.endswith(".safetensors")}
    parts |= {n: JSON for n in (*single, *shards) if n.endswith(".json")}
    image = _image()
    index = tuple(n for n in shards if n.endswith((".index.json", ".safetensors")))
    spoken = {
        "tokenizer.model": _sentencepiece_model(),
        "tokenizer_config.json": b'{"added_tokens_decoder": {"35": {"content": "<x>", "special": true}}, "bos_token": "<s>", "extra_special_tokens": ["<y>"]}',
        "added_tokens.json": b'{"<z>": 36}',
        "special_tokens_map.json": b'{"eos_token": "</s>", "pad_token": {"content": "<p>", "lstrip": true}}',
    }
    settings = json.dumps(
        {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.05}
    )
    return [
        Target("config", single, read_folder, parts, configs),
        Target("safetensors", single, read_folder, parts, ("model.safetensors",)),
        Target("latent", latent, read_folder, parts, ("model.safetensors", "config.json")),
        Target("shards", shards, read_folder, parts, index),
        Target("tokenizer", single, read_tokenizer, parts, ("tokenizer.json", "tokenizer_config.json")),
        Target(
            "sentencepiece",
            spoken,
            read_sentencepiece_folder,
            {n: JSON for n in spoken if n.endswith(".json")},
            header=1 << 12,
        ),
        Target("image", {"m.tlm": image}, read_image, {"m.tlm": (Part(image_header),)}),
        Target(
            "program",
            {"program": program_of(image, TINY)},
            partial(read_program, config=TINY),
            {"program": (Part(program_fields, "tree"),)},
            header=1 << 12,
        ),
        Target("template", {"template": _TEMPLATE}, read_template, header=1 << 12),
        Target("request", {"body": json.dumps(_BODY).encode()}, read_request, {"body": JSON}),
        Target(
            "configuration",
            {"board.toml": b'board = "below.toml"\nlanes = 4\n', "below.toml": _BOARD},
            read_configuration,
            dict.fromkeys(("board.toml", "below.toml"), (Part(toml, "tree"),)),
            header=1 << 12,
        ),
        Target(
            "board",
            {"board.toml": _DESCRIBED, "pins.xdc": b"# none\n"},
            read_configuration,
            {"board.toml": (Part(toml, "tree"),)},
            ("board.toml",),
            header=1 << 12,
        ),
        Target(
            "defaults", {"generation_config.json": settings.encode()}, read_defaults, {"generation_config.json": JSON}
        ),
        _prompt_cache(image),
        _conversation(),
        _server(),
        *(
            Target(
                f"gguf {kind}", {"m.gguf": data}, read_gguf_file, {"m.gguf": GGUF}, header=data.rindex(b"weight") + 64
            )
            for kind, data in _gguf().items()
        ),
        *families(),
    ]
