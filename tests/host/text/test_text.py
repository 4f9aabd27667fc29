"""Text that enters and leaves the command: what is no text is refused with its place, what a stream cannot hold is escaped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from typer.testing import CliRunner

from tellme.golden.config import TINY
from tellme.host import cli
from tellme.host.checkpoints.checkpoint import open_checkpoint
from tellme.host.checkpoints.gguf import read_gguf
from tellme.host.errors import UserError
from tellme.host.image.model import Model, convert
from tellme.host.text.streams import checked, decoded
from tellme.host.text.tokenizer import Tokenizer
from tests.host.checkpoints.gguf_support import model, write_gguf
from tests.host.checkpoints.test_gguf import sentencepiece_vocabulary
from tests.host.support import DEMO, config_json, tensors_of, write_folder
from tests.host.text.test_vocabulary import train

ROOT = Path(__file__).parents[3]
GOLDEN = ("--backend", "golden", "--max-new-tokens", "3")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LATIN = {"PYTHONIOENCODING": "latin-1"}


def tellme(*arguments: str | bytes, data: bytes = b"", out: Any = subprocess.PIPE, **environment: str) -> Any:
    """The command in a process of its own, with bytes on both sides."""
    code = "from tellme.host.cli import main; main()"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "PYTHON"))}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        input=data,
        stdout=out,
        stderr=subprocess.PIPE,
        env=clean | {"PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"} | environment,
        timeout=120,
        check=False,
    )


def one_line(r: Any, message: str, code: int) -> None:
    assert r.returncode == code, r
    assert r.stderr.startswith(b"tellme: ") and r.stderr.count(b"\n") == 1, r.stderr
    assert message.encode() in r.stderr


def objects(r: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in r.stdout.splitlines()]


def test_text_is_checked_and_its_place_named():
    assert checked("é🙂\0", "x") == "é🙂\0"
    assert checked("caf\udcc3\udca9", "x") == "café"
    for text, message in {
        "ab\udcff": r"^x: is not UTF-8 text \(invalid start byte at byte 2\); convert it first$",
        "\udcc3": r"^x: is not UTF-8 text \(unexpected end of data at byte 0\)",
        "é\ud83d": r"^x: is not text \(character 1 is U\+D83D, half of a surrogate pair\); leave it out$",
    }.items():
        with pytest.raises(UserError, match=message):
            checked(text, "x")
    assert decoded("é".encode("latin-1"), "x", "latin-1") == "é"
    with pytest.raises(UserError, match=r"^x: is not ASCII text \(ordinal not in range\(128\) at byte 1\)"):
        decoded(b"a\xe9", "x", "ascii")


# ---- in ----------------------------------------------------------------------------------------------------------------


def test_a_prompt_with_a_bad_byte_is_refused_in_one_line():
    message = "--prompt: is not UTF-8 text (invalid start byte at byte 2); convert it first"
    for environment in ({}, ASCII):
        one_line(tellme("run", "--prompt", b"ab\xffc", *GOLDEN, **environment), message, 2)
    one_line(tellme("run", "--prompt", "x", "--stop", b"\xff", *GOLDEN), "--stop: is not UTF-8 text", 2)
    one_line(tellme("chat", "--system", b"\xff", *GOLDEN), "--system: is not UTF-8 text", 2)
    one_line(tellme("run", "--model", b"\xff", "--prompt", "x", *GOLDEN), "not found", 2)


def test_a_model_in_a_folder_whose_name_is_no_text_runs_and_converts(tmp_path: Path):
    folder, image = tmp_path / os.fsdecode(b"\xffm"), tmp_path / "m.tlm"
    shutil.copytree(DEMO, folder)
    convert(open_checkpoint(folder), image, TINY)
    for path in (folder, image):
        with Model.open(path, TINY) as opened:
            assert opened.name == "\ufffdm" and opened.tokenizer.encode("One day") == [0, 899, 321]


def test_a_message_that_is_no_text_is_refused_and_the_next_answered():
    r = tellme("chat", *GOLDEN, "--json", data=b"One day\nab\xffc\n\xff\nOne\0 day\n")
    answers = objects(r)
    assert ["text" in a for a in answers] == [True, False, False, True] and r.returncode == 2
    message = "line 2 of the input: is not UTF-8 text (invalid start byte at byte 2); convert it first"
    assert answers[1]["error"] == message
    assert r.stderr.count(b"\n") == 2 and b"Traceback" not in r.stderr
    r = tellme("chat", *GOLDEN, data=b"\xff\n")
    one_line(r, "line 1 of the input: is not UTF-8 text (invalid start byte at byte 0)", 2)


def test_a_message_in_another_locale_is_read_in_it():
    want = objects(tellme("chat", *GOLDEN, "--json", data="café\n".encode()))
    for data, environment in (("café\n".encode(), ASCII), ("café\n".encode("latin-1"), LATIN)):
        got = objects(tellme("chat", *GOLDEN, "--json", data=data, **environment))
        assert [a["new_ids"] for a in got] == [a["new_ids"] for a in want], environment


def test_a_refused_message_in_json_is_an_object_and_an_exit_code():
    long = b"One day " * 300
    r = tellme("chat", *GOLDEN, "--json", data=b"One day\n" + long + b"\n/nothing\nOne\n")
    answers = objects(r)
    assert ["text" in a for a in answers] == [True, False, False, True] and r.returncode == 2
    assert answers[1]["error"].startswith("the message has 600 tokens, at most ")
    assert answers[2]["error"].startswith("there is no command /nothing")
    assert tellme("chat", *GOLDEN, "--json", data=b"One day\n/stats\n").returncode == 0


def test_an_answer_in_json_says_what_gave_it():
    (said,) = objects(tellme("chat", "--backend", "golden", "--json", "--max-new-tokens", "2", data=b"One\n"))
    run = tellme("run", "--backend", "golden", "--json", "--max-new-tokens", "2", "--prompt", "One")
    (ran,) = objects(run)
    same = ("model", "backend", "board", "clock_hz", "version", "commit")
    assert {k: said[k] for k in same} == {k: ran[k] for k in same} and said["model"] and said["seconds"] > 0


def test_chat_without_an_input_says_so():
    for source, message in {
        "<&-": "standard input is closed; chat reads its messages from it, one a line",
        "0>/dev/null": "standard input cannot be read (Bad file descriptor)",
    }.items():
        code = f'exec "$0" -c "from tellme.host.cli import main; main()" chat --backend golden {source}'
        r = subprocess.run(["/bin/sh", "-c", code, sys.executable], capture_output=True, cwd=ROOT, check=False)
        one_line(r, message, 2)


def test_a_text_to_score_says_where_it_is_no_text(tmp_path: Path):
    path = tmp_path / "t.txt"
    path.write_bytes("é, ".encode() + b"\xc3(")
    one_line(tellme("eval", "demo", "--text", str(path)), "is not UTF-8 text (invalid continuation byte at byte 4)", 2)
    path.write_bytes(b"One\0 day\n")
    assert tellme("eval", "demo", "--text", str(path), "--json").returncode == 0


# ---- out ---------------------------------------------------------------------------------------------------------------


def test_what_a_stream_cannot_hold_is_escaped():
    prompt = "café 🙂"
    r = tellme("run", "--prompt", prompt, *GOLDEN, PYTHONIOENCODING="ascii")
    assert r.returncode == 0 and r.stdout.startswith(b"caf\\u00e9 \\ud83d\\ude42")
    r = tellme("run", "--prompt", prompt, *GOLDEN, **LATIN)
    assert r.returncode == 0 and r.stdout.startswith("café \\ud83d\\ude42".encode("latin-1"))
    assert tellme("boards", **ASCII).returncode == 0


def test_json_stays_json_in_every_locale(tmp_path: Path):
    path = tmp_path / os.fsdecode(b"caf\xc3\xa9 \xf0\x9f\x99\x82 \xff.txt")
    path.write_text("One day, a small fox")
    want = [{}, ASCII, {"PYTHONIOENCODING": "ascii"}]
    names = [objects(tellme("eval", "demo", "--text", os.fsencode(path), "--json", **e))[0]["text"] for e in want]
    assert names[0].endswith("café 🙂 \udcff.txt") and names[2] == names[0]


@pytest.mark.parametrize("command", [("run", "--prompt", "One", *GOLDEN), ("boards",), ("info", "demo")])
def test_output_that_cannot_be_written_is_one_line(command: tuple[str, ...]):
    with open("/dev/full", "wb") as full:
        one_line(tellme(*command, out=full), "standard output cannot be written (No space left on device)", 1)
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as broken:
        r = tellme(*command, out=broken)
    assert (r.returncode, r.stderr) == (1, b"")


# ---- one model in every form -------------------------------------------------------------------------------------------


def forms(tmp_path: Path, folder: Path, **gguf: Any) -> list[Path]:
    image = tmp_path / "m.tlm"
    convert(open_checkpoint(folder), image, TINY)
    file = write_gguf(tmp_path / "m.gguf", model(), **gguf)
    other = tmp_path / "n.tlm"
    convert(open_checkpoint(file), other, TINY)
    return [folder, image, file, other]


def tokens(path: Path, text: str) -> list[int]:
    with Model.open(path, TINY) as opened:
        return opened.tokenizer.encode(text)


@pytest.mark.parametrize("start", [True, False])
def test_byte_level_models_have_the_same_tokens_in_every_form(tmp_path: Path, start: bool):
    weights = model()
    folder = write_folder(tmp_path / "m", config_json(weights.spec), tensors_of(weights))
    if not start:
        saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        (folder / "tokenizer.json").write_text(json.dumps(saved | {"post_processor": None}))
    for path in forms(tmp_path, folder, tokenizer__ggml__add_bos_token=start):
        assert tokens(path, "One day") == [0] * start + [899, 321], path


@pytest.mark.parametrize("said", [None, True, False])
def test_sentencepiece_models_have_the_same_tokens_in_every_form(tmp_path: Path, said: bool | None):
    data = train("bpe", "identity", False, True, True)
    weights = model()
    folder = write_folder(
        tmp_path / "m", config_json(weights.spec, bos_token_id=1, eos_token_id=2), tensors_of(weights)
    )
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(data)
    config = {"tokenizer_class": "LlamaTokenizer"} | ({} if said is None else {"add_bos_token": said})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    gguf = {} if said is None else {"tokenizer__ggml__add_bos_token": said}
    want = [1] * (said is not False) + sentencepiece.SentencePieceProcessor(model_proto=data).encode("One day")
    for path in forms(tmp_path, folder, vocabulary=sentencepiece_vocabulary(data), **gguf):
        assert tokens(path, "One day") == want, path


@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize("end", ["<|eot_id|>", "<end_of_turn>"])
def test_an_end_of_turn_of_a_gguf_file_ends_whatever_its_type(tmp_path: Path, kind: int, end: str):
    data = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    texts = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)

    def vocabulary(w: Any) -> None:
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("gpt-2")
        w.add_token_list([*texts[:-1], end])
        w.add_token_types([3, 3, *[1] * (len(texts) - 3), kind])
        merges = [m if isinstance(m, list) else m.split() for m in data["model"]["merges"]]
        w.add_token_merges([" ".join(m) for m in merges if "".join(m) != texts[-1]])
        w.add_eos_token_id(1)

    checkpoint = read_gguf(write_gguf(tmp_path / "m.gguf", model(), vocabulary=vocabulary))
    t = Tokenizer(checkpoint.tokenizer, 1024)
    assert checkpoint.eos_ids == (1, 1023) and t.end_ids == {1, 1023}
    assert t.encode(f"One{end}")[-1] == 1023 and t.decode([1023]) == ""


def test_chat_takes_the_latent_option_that_its_message_advises(tmp_path: Path):
    weights = model(attn_sub_norm=False, ffn_sub_norm=False)
    floats = {n: x if "proj" not in n else x + 0.01 for n, x in tensors_of(weights, latent=True).items()}
    config = config_json(weights.spec)
    config.pop("quantization_config")
    folder = write_folder(tmp_path / "m", config, floats)
    chat = ("chat", *GOLDEN, "--json", "--model", str(folder))
    r = tellme(*chat, data=b"One day\n")
    one_line(r, "--latent", 2)
    r = tellme(*chat, "--latent", data=b"One day\n")
    assert r.returncode == 0 and len(objects(r)) == 1, r.stderr


def test_a_folder_ends_at_the_names_of_turn_ends(tmp_path: Path):
    folder = tmp_path / "m"
    shutil.copytree(DEMO, folder)
    saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = tokens(folder, "One day, a small fox")

    def run(path: Path, *options: str) -> dict[str, Any]:
        arguments = ("run", *GOLDEN, "--prompt", "One day, a small fox", "--json", "--model", str(path), *options)
        return dict(json.loads(CliRunner().invoke(cli.app, arguments).stdout))

    first, second, _ = run(folder)["new_ids"]
    assert second not in ids
    vocab = {("<end_of_turn>" if i == second else t): i for t, i in saved["model"]["vocab"].items()}
    merges = [m if isinstance(m, list) else m.split() for m in saved["model"]["merges"]]
    merges = [m for m in merges if {*m, "".join(m)} <= set(vocab)]
    token = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    added = [*saved["added_tokens"], {"id": second, "content": "<end_of_turn>", "special": True, **token}]
    changed = saved | {"model": saved["model"] | {"vocab": vocab, "merges": merges}, "added_tokens": added}
    (folder / "tokenizer.json").write_text(json.dumps(changed))
    image = tmp_path / "m.tlm"
    convert(open_checkpoint(folder), image, TINY)
    for path in (folder, image):
        for stop in ((), ("--stop", "<end_of_turn>")):
            assert run(path, *stop)["new_ids"] == [first, second]
