"""Property sets that users bring along: that they are asked, that what they assume is assumed, and that a wrong one is found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.formal.attach import WRAPPER, prove_attached

STAYS = """
	reg waits = 0; reg [{w}:0] was;
	always @(posedge i_clk) begin waits <= i_axi_reset_n && {v}valid && !{v}ready; was <= {p}; end
	always @(*) if (i_axi_reset_n && waits) {word}({v}valid && {p} == was);
"""


def properties(master: bool, body: str, folder: Path) -> Path:
    """A module of the ports that the wrapper connects, and what it says of them."""
    part = WRAPPER.read_text().split("`else")[0 if master else 1]
    part = part[part.index("`PROPERTIES") :]
    ports = re.findall(r"\.(i_\w+)\(", part)
    widths = {"addr": "C_AXI_ADDR_WIDTH", "data": "C_AXI_DATA_WIDTH", "strb": "C_AXI_DATA_WIDTH/8", "id": "C_AXI_ID_WIDTH", "len": "8", "size": "3", "prot": "3", "burst": "2", "resp": "2", "cache": "4", "qos": "4"}  # fmt: skip

    def width(port: str) -> str:
        kind = next((w for n, w in widths.items() if re.fullmatch(rf"i_axi_(aw|w|b|ar|r){n}", port)), "1")
        return f"input wire [({kind})-1:0] {port}"

    path = folder / "the properties.v"
    path.write_text(
        "module mine #(parameter C_AXI_ID_WIDTH = 1, C_AXI_DATA_WIDTH = 8, C_AXI_ADDR_WIDTH = 8, MOST = 0) ("
        + ", ".join(width(p) for p in ports)
        + f");\n{body}\nendmodule\n"
    )
    return path


def test_properties_of_a_slave_are_asked_of_the_registers(tmp_path: Path) -> None:
    keeps = "".join(STAYS.format(v=f"i_axi_{v}", p=f"i_axi_{p}", w=w, word="assume") .replace("waits", f"waits_{v}").replace("was;", f"was_{v};").replace("was <=", f"was_{v} <=").replace("== was", f"== was_{v}") for v, p, w in (("aw", "awaddr", 31), ("w", "wdata", 31), ("ar", "araddr", 31)))  # fmt: skip
    answers = STAYS.format(v="i_axi_r", p="i_axi_rdata", w=31, word="assert")
    good = properties(False, keeps + answers, tmp_path)
    r = prove_attached(False, "mine", [good], depth=10, seconds=120)
    assert r.proved and r.depth == 10, r
    # An answer comes, and first in the fourth cycle; what is assumed keeps it away.
    never = "always @(*) if (i_axi_reset_n) assert(!i_axi_rvalid);"
    r = prove_attached(False, "mine", [properties(False, never, tmp_path)], depth=10, seconds=120)
    assert not r.proved and r.broken == "a property of mine" and 2 <= r.cycle <= 4, r
    unasked = "always @(*) assume(!i_axi_arvalid);" + never
    r = prove_attached(False, "mine", [properties(False, unasked, tmp_path)], depth=10, seconds=120)
    assert r.proved, r


@pytest.mark.parametrize(("most", "holds"), [(1, True), (0, False)])
def test_properties_of_a_master_are_asked_of_the_memory_port(most: int, holds: bool, tmp_path: Path) -> None:
    body = STAYS.format(v="i_axi_aw", p="i_axi_awaddr", w="C_AXI_ADDR_WIDTH", word="assert") + (
        "always @(*) if (i_axi_reset_n && i_axi_arvalid) assert(i_axi_arlen <= MOST && i_axi_arburst == 1);"
        "always @(*) assume(!i_axi_bvalid && !i_axi_rvalid);"
    )
    source = properties(True, body, tmp_path)
    r = prove_attached(True, "mine", [source], parameters=f".MOST({most})", depth=9, seconds=120)
    assert r.proved == holds and not r.undecided, r
