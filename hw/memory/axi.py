"""AXI4 and AXI4-Lite signatures (AMBA AXI specification, Arm IHI 0022), seen from the master."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.registers import BASE_ALIGNMENT, PORT_ADDRESS_BITS

ADDRESS_WIDTH = PORT_ADDRESS_BITS
"""Bits of an AXI4 byte address. Higher bits of a base are dropped."""

ID_WIDTH = 4
"""Bits of AXI4 IDs. Every master here uses ID 0 alone, so that its responses come in order."""

BURST_INCR = 0b01
CACHE_MODIFIABLE_BUFFERABLE = 0b0011
"""AxCACHE 'normal non-cacheable bufferable': lets the interconnect pack and split transfers."""
PROT_DATA = 0b000
"""AxPROT unprivileged, secure, data (what Xilinx IP drives)."""

RESPONSE_DECERR = 0b11


def aligned(base: Value) -> Value:
    """A port's base as every master takes it: a multiple of `BASE_ALIGNMENT`, of `ADDRESS_WIDTH` bits."""
    low = exact_log2(BASE_ALIGNMENT)
    return Cat(Const(0, low), base[low:ADDRESS_WIDTH])


def _address_channel(prefix: str, address_width: int, id_width: int) -> dict[str, wiring.Member]:
    return {
        f"{prefix}valid": Out(1),
        f"{prefix}ready": In(1),
        f"{prefix}id": Out(id_width),
        f"{prefix}addr": Out(address_width),
        f"{prefix}len": Out(8),
        f"{prefix}size": Out(3),
        f"{prefix}burst": Out(2),
        f"{prefix}lock": Out(1),
        f"{prefix}cache": Out(4),
        f"{prefix}prot": Out(3),
        f"{prefix}qos": Out(4),
    }


def _check(data_bytes: int, address_width: int, id_width: int) -> None:
    if data_bytes not in (4, 8, 16, 32, 64, 128):
        raise ValueError(f"data_bytes must be a power of two from 4 to 128, not {data_bytes!r}")
    if not 12 < address_width <= 64:
        raise ValueError(f"address_width must be from 13 to 64, not {address_width!r}")
    if not 0 < id_width <= 16:
        raise ValueError(f"id_width must be from 1 to 16, not {id_width!r}")


class AxiRead(wiring.Signature):
    """Read channels (AR, R) of an AXI4 master.

    Parameters
    ----------
    data_bytes : bytes of a transfer.
    address_width, id_width : bits.

    Raises
    ------
    ValueError : with the bad value and what is allowed.
    """

    def __init__(self, *, data_bytes: int, address_width: int = ADDRESS_WIDTH, id_width: int = ID_WIDTH) -> None:
        _check(data_bytes, address_width, id_width)
        self.data_bytes = data_bytes
        super().__init__(
            _address_channel("ar", address_width, id_width)
            | {
                "rvalid": In(1),
                "rready": Out(1),
                "rid": In(id_width),
                "rdata": In(data_bytes * 8),
                "rresp": In(2),
                "rlast": In(1),
            }
        )


class AxiWrite(wiring.Signature):
    """Write channels (AW, W, B) of an AXI4 master. Parameters and errors as AxiRead's."""

    def __init__(self, *, data_bytes: int, address_width: int = ADDRESS_WIDTH, id_width: int = ID_WIDTH) -> None:
        _check(data_bytes, address_width, id_width)
        self.data_bytes = data_bytes
        super().__init__(
            _address_channel("aw", address_width, id_width)
            | {
                "wvalid": Out(1),
                "wready": In(1),
                "wdata": Out(data_bytes * 8),
                "wstrb": Out(data_bytes),
                "wlast": Out(1),
                "bvalid": In(1),
                "bready": Out(1),
                "bid": In(id_width),
                "bresp": In(2),
            }
        )


class Axi(wiring.Signature):
    """All channels of an AXI4 master: the members of AxiRead and AxiWrite side by side. Parameters as AxiRead's."""

    def __init__(self, *, data_bytes: int, address_width: int = ADDRESS_WIDTH, id_width: int = ID_WIDTH) -> None:
        read = AxiRead(data_bytes=data_bytes, address_width=address_width, id_width=id_width)
        write = AxiWrite(data_bytes=data_bytes, address_width=address_width, id_width=id_width)
        self.data_bytes = data_bytes
        super().__init__(dict(read.members.items()) | dict(write.members.items()))


class AxiLite(wiring.Signature):
    """AXI4-Lite of 32-bit registers, seen from the master (a slave takes `In(AxiLite(...))`).

    Parameters
    ----------
    address_width : bits of a byte address.
    """

    def __init__(self, *, address_width: int) -> None:
        if not 2 < address_width <= 32:
            raise ValueError(f"address_width must be from 3 to 32, not {address_width!r}")
        super().__init__(
            {
                "awvalid": Out(1),
                "awready": In(1),
                "awaddr": Out(address_width),
                "awprot": Out(3),
                "wvalid": Out(1),
                "wready": In(1),
                "wdata": Out(32),
                "wstrb": Out(4),
                "bvalid": In(1),
                "bready": Out(1),
                "bresp": In(2),
                "arvalid": Out(1),
                "arready": In(1),
                "araddr": Out(address_width),
                "arprot": Out(3),
                "rvalid": In(1),
                "rready": Out(1),
                "rdata": In(32),
                "rresp": In(2),
            }
        )
