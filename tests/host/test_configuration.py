"""Configuration files and settings: what they resolve to, and what is refused in which words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tellme.golden.boards import BOARDS, build_name
from tellme.golden.config import KV260, PRESETS, PYNQ_Z2, TINY
from tellme.golden.registers import build_hash
from tellme.host.configuration import DERIVED, PARAMETERS, resolve, text
from tellme.host.errors import UserError
from tests.own_boards import EXAMPLES, forgotten

ZYBO = next(f for f in EXAMPLES if f.stem == "zybo_z7_20")


@pytest.fixture(autouse=True)
def own() -> Iterator[None]:
    with forgotten():
        yield


def file(folder: Path, content: str, name: str = "x.toml") -> Path:
    (folder / name).write_text(content)
    return folder / name


def test_without_file_and_settings_it_is_the_preset() -> None:
    for name, config in PRESETS.items():
        found = resolve(name, None, ())
        assert found.config == config and found.changes == {} and found.files == ()
    assert resolve(None, None, (), default="kv260").config == KV260


def test_a_file_changes_a_preset_and_settings_change_the_file(tmp_path: Path) -> None:
    path = file(tmp_path, 'board = "kv260"\nlanes = 8\ngroup_size = 4\nclock_mhz = 200\n')
    found = resolve(None, path, ())
    assert found.config == replace(KV260, lanes=8, group_size=4, clock_hz=200_000_000)
    assert found.changes == {"lanes": 8, "group_size": 4, "clock_hz": 200_000_000} and found.files == (path,)
    assert resolve("kv260", path, ()).config == found.config
    over = resolve(None, path, ("lanes=2", "clock_hz = 166_666_667", "lanes=4"))
    assert over.config == replace(KV260, lanes=4, group_size=4, clock_hz=166_666_667)


def test_a_file_may_stand_on_another(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    below = file(tmp_path, 'board = "pynq_z2"\nclock_hz = 125_000_000\nlanes = 2\n', "below.toml")
    above = file(tmp_path / "deep", 'board = "../below.toml"\nclock_mhz = 50\ngroup_size = 2\n')
    found = resolve(None, above, ())
    assert found.config == replace(PYNQ_Z2, clock_hz=50_000_000, lanes=2, group_size=2)
    assert [f.name for f in found.files] == ["x.toml", below.name]


def test_every_change_changes_the_hash_of_the_build() -> None:
    other = {
        "ports": 2, "port_bytes": 8, "lanes": 2, "group_size": 4, "block_rows": 256, "attention_lanes": 4, "key_tile": 64,
        "max_hidden": 512, "max_features": 2048, "max_kv_dim": 512, "max_heads": 8, "max_head_dim": 64, "max_context": 128,
        "score_words": 4096, "fifo_beats": 1024, "max_descriptors": 64, "burst_beats": 8, "outstanding": 4,
        "screen_entries": 256,
    }  # fmt: skip
    assert set(other) <= set(PARAMETERS)
    seen = {build_hash(TINY)}
    for name, value in other.items():
        more = {"port_bytes=8": ["ports=2"]}.get(f"{name}={value}", [])
        config = resolve("tiny", None, [f"{name}={value}", *more]).config
        assert getattr(config, name) == value
        seen.add(build_hash(config))
        assert build_name(config) == f"tellme-tiny-{build_hash(config):08x}"
    assert len(seen) == 1 + len(other)
    # One build whatever clock it routed at.
    assert build_hash(resolve("tiny", None, ["clock_hz=50000000"]).config) == build_hash(TINY)


def test_what_is_written_is_read_as_the_same(tmp_path: Path) -> None:
    config = replace(KV260, lanes=2, burst_beats=8, clock_hz=142_857_143)
    path = file(tmp_path, text(config, "kv260", KV260, "two\nlines"))
    assert path.read_text().startswith("# two\n# lines\nboard = ")
    assert resolve(None, path, ()).config == config
    found = resolve(None, ZYBO, ("lanes=1",))
    again = resolve(None, file(tmp_path, text(found.config, found.board, found.base)), ())
    assert again.config == found.config and again.board == found.board


def test_the_record_says_everything() -> None:
    record = resolve("kv260", None, ("lanes=8",)).record()
    assert set(record["parameters"]) == set(PARAMETERS) and set(DERIVED) < set(record["derived"])
    assert record["derived"]["beat_weights"] == 320 and record["derived"]["beat_rate"] == 16_000_000_000
    assert record["changes"] == {"lanes": 8} and record["part"] == "xck26-sfvc784-2LV-c"
    assert record["build"] == record["name"].rpartition("-")[2] and len(record["sha256"]) == 64


@pytest.mark.parametrize(
    "settings,message",
    [
        (["lanes=3"], "--set lanes=3: lanes must be a power of two from 1 to 32, not 3"),
        (["lane=4"], "there is no parameter 'lane', did you mean lanes"),
        (["name='x'"], "name is the board's"),
        (["lanes"], "must be name=value"),
        (["=8"], "must be name=value"),
        (["lanes="], "must be name=value"),
        (["lanes=eight"], "'eight' is no value"),
        (["lanes=8\nports=2"], "is no value"),
        (["lanes='8'"], "lanes must be a power of two from 1 to 32, not '8'"),
        (["lanes=true"], "not True"),
        (["lanes=8.0"], "not 8.0"),
        (["lanes=[8]"], "not .8."),
        (
            ["clock_mhz=210"],
            "kv260 makes no clock of 210 MHz .its PLL of 1000 MHz by a whole number.; near it are 250, 200, 166.667",
        ),
        (["clock_mhz=nan"], "from 1 to 1,000, not nan"),
        (["clock_mhz=1000.5"], "from 1 to 1,000, not 1000.5"),
        (["clock_hz=0"], "clock_hz must be a whole number from 1,000,000"),
        (["ports=8"], "must be 16, 32 or 64, not 128"),
        (["ports=8", "port_bytes=8"], "kv260 has 8 ports of 64 bits, board 'kv260' has 4 of 128"),
        (["ports=2"], "2 ports|score_words .2048. must hold .* at least 3984|score_words"),
        (["max_context=100"], "multiple of 128 .key_block."),
        (["burst_beats=256", "port_bytes=16", "lanes=64"], "lanes must be"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve("kv260", None, settings)


def test_a_zynq_7000_has_short_bursts() -> None:
    with pytest.raises(UserError, match="burst_beats must be at most 16 on Zynq-7000"):
        resolve("pynq_z2", None, ["burst_beats=32"])


@pytest.mark.parametrize(
    "content,message",
    [
        ("", "board must name the preset"),
        ("board = 3", "not 3; there are"),
        ('board = "kv206"', "board 'kv206' is unknown"),
        ('board = "kv260"\nlanes = 8\nlanes = 4', "is no TOML"),
        ('board = "kv260"\nlanes', "is no TOML"),
        ('board = "kv260"\n[accelerator]\nlanes = 8', "no parameter 'accelerator'"),
        ('board = "kv260"\nclock_hz = 200_000_000\nclock_mhz = 200', "say the same; give one"),
        ('board = "x.toml"', "name each other"),
        ('board = "none.toml"', "none.toml: cannot be read .No such file"),
        ('board = "kv260"\nlanes = 7', "x.toml: lanes must be a power of two"),
        ("board = " + "[" * 5000, "is no TOML"),
        ('board = "\\u0000.toml"', "board .* is unknown"),
    ],
)
def test_files_that_cannot_be_are_refused(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as e:
        resolve(None, file(tmp_path, content), ())
    assert ".toml: " in str(e.value) and "\n" not in str(e.value)


def test_more_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is for board 'kv260', not 'tiny'; leave --board out"):
        resolve("tiny", file(tmp_path, 'board = "kv260"'), ())
    with pytest.raises(UserError, match="Is a directory"):
        resolve(None, tmp_path, ())
    (tmp_path / "b.toml").write_bytes(b'board = "\xff"')
    with pytest.raises(UserError, match="is not UTF-8"):
        resolve(None, tmp_path / "b.toml", ())
    with pytest.raises(UserError, match="more than 1,048,576 bytes"):
        resolve(None, file(tmp_path, "#" * (1 << 20) + "\n"), ())


# ---- boards of files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_a_board_of_a_file_is_known_by_its_name(path: Path) -> None:
    found = resolve(None, path, ())
    board = BOARDS[path.stem]
    assert board.config == found.config == found.base == PRESETS[path.stem] and found.config.name == path.stem
    assert resolve(path.stem, None, ("lanes=1",)).changes == {"lanes": 1}
    assert resolve(None, path, ()).config == found.config, "read twice"
    assert board.constraints.strip() and board.memory_rate <= board.ddr_peak
    assert len(board.dram.ports) == len(board.memory_ports)


def edited(folder: Path, old: str, new: str, path: Path = ZYBO) -> Path:
    content = path.read_text()
    assert old in content
    return file(folder, content.replace(old, new, 1))


@pytest.mark.parametrize(
    "old,new,message",
    [
        ('name = "zybo_z7_20"', 'name = "kv260"', "a board named 'kv260' is there already"),
        ('name = "zybo_z7_20"', 'name = "tiny"', "a board named 'tiny' is there already"),
        ('name = "zybo_z7_20"', 'name = "../x"', "name must be up to 32 small letters"),
        ('like = "pynq_z2"', 'like = "pynq_z1"', "like must be a board whose family it has, not 'pynq_z1'"),
        ('like = "pynq_z2"', 'like = "kv260"', "memory_ports must be some of"),
        ("luts = 53_200", "", "luts must be given: no other board's are right"),
        ("luts = 53_200", "luts = 53.2", "luts must be a whole number from 1,000 to 10,000,000, not 53.2"),
        ("luts = 53_200", "luts = true", "not True"),
        ("luts = 53_200", "luts = 53_200\nlutz = 1", "there is no fact 'lutz', did you mean luts"),
        ('title = "Digilent Zybo Z7-20"', 'title = "a]; exec rm"', "title must be"),
        ('title = "Digilent Zybo Z7-20"', 'title = """a\nb"""', "title must be"),
        ('speed = "1"', 'speed = "1 "', "speed must be"),
        ("digilentinc.com:zybo-z7-20:part0", "zybo", "board_part must be vendor:board:part0"),
        ('ddr = "DDR3-1066, 32 bit"', 'ddr = "DDR3"', "ddr must be as 'DDR4-2400, 64 bit'"),
        ("memory_rate = 3_200_000_000", "", "give its timing .table dram. and memory_rate"),
        ('"S_AXI_HP3"]', '"S_AXI_HP2"]', "memory_ports must be some of"),
        ('"S_AXI_HP3"]', '"S_AXI_ACP"]', "memory_ports must be some of"),
        ('"S_AXI_HP3"]', "3]", "memory_ports must be some of"),
        (', "S_AXI_HP3"]', "]", "ports must be the controller's port of each of 3 memory ports"),
        ("ports = 4", "ports = 8\nkey_tile = 16", "zybo_z7_20 has 8 ports of 64 bits, board 'zybo_z7_20' has 4 of 64"),
        ("rcd = 7", "rdc = 7", "no timing in dram 'rdc', did you mean r"),
        ("rcd = 7", "rcd = -7", "dram: rcd must be a whole number"),
        ("block = 32", "block = 48", "block must be 16, 32, 64 or 128"),
        ("ccd_s = 4", "ccd_s = 0", "ccd_s at least 1"),
        ("row_low = 15", "row_low = 13", "must lie below row_low"),
        ("ports = [0, 0, 1, 1]", "ports = [0, 1]", "each of 4 memory ports"),
        ('manual = "DS190', 'constraints = "no.xdc"\nmanual = "DS190', "constraints 'no.xdc' cannot be read"),
        ('manual = "DS190', 'constraints = "\\u0000"\nmanual = "DS190', "constraints .* cannot be read"),
        (
            'manual = "DS190',
            'constraints = "/dev/zero"\nmanual = "DS190',
            "constraints '/dev/zero' is no file of up to",
        ),
        ('manual = "DS190', 'phases_kib = [0, 1, 2, 3]\nmanual = "DS190', "phases_kib must be a multiple of 4"),
        ('manual = "DS190', 'register_base = 100\nmanual = "DS190', "register_base must be a multiple of 4096"),
        ("score_words = 1024", "score_words = 512", "x.toml: score_words .512. must hold"),
    ],
)
def test_boards_that_cannot_be_are_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    before = set(BOARDS)
    with pytest.raises(UserError, match=message):
        resolve(None, edited(tmp_path, old, new), ())
    assert set(BOARDS) == before and set(PRESETS) == before | {"tiny"}


def test_constraints_of_its_own_are_taken(tmp_path: Path) -> None:
    (tmp_path / "my.xdc").write_text("# mine\n")
    resolve(None, edited(tmp_path, 'manual = "DS190', 'constraints = "my.xdc"\nmanual = "DS190'), ())
    assert BOARDS["zybo_z7_20"].constraints == "# mine\n"
