"""The accelerator on a board as a back end: bitstream, device, driver, model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tellme.golden.boards import build_name
from tellme.golden.config import AcceleratorConfig
from tellme.host.image.model import Model
from tellme.host.machine.device import Device
from tellme.host.machine.driver import Driver
from tellme.host.machine.placement import in_use
from tellme.host.machine.program import Program

TIMEOUT_S = 10.0
"""Wall clock that a pass may take on a board, where it takes milliseconds."""


def bitstream_path(config: AcceleratorConfig, given: Path | None = None) -> Path:
    """The bitstream to load: the given one, else the one of this configuration in the current folder or in `build/`."""
    if given is not None:
        return given
    name = f"{build_name(config)}.bit"
    for folder in (Path(), Path("build"), Path("build") / config.name):
        if (folder / name).is_file():
            return folder / name
    return Path(name)


def open_board(config: AcceleratorConfig, beats: int, bitstream: Path | None = None) -> Device:
    """The device of a board with a buffer of `beats`, its ports' regions one behind the other.

    Raises
    ------
    UserError, DeviceError : as `PynqDevice`.
    """
    from tellme.host.machine.pynq.device import PynqDevice

    return PynqDevice(bitstream_path(config, bitstream), config, beats, phases=())


class BoardAccelerator(Driver):
    """The accelerator of a board with a model loaded.

    Parameters
    ----------
    model : an open image.
    program : the model's, compiled for the board's preset.
    bitstream : a `.bit` file; see `bitstream_path`.
    device : a `pynq.Device`; PYNQ's active one if None.

    Raises
    ------
    UserError : files or model do not fit; the board is not touched.
    DeviceError : the board is not as it must be; nothing is kept of it.
    """

    def __init__(
        self,
        model: Model,
        program: Program,
        *,
        bitstream: Path | None = None,
        device: Any = None,
    ):
        config = program.config
        from tellme.host.machine.pynq.device import PynqDevice

        opened = PynqDevice(
            bitstream_path(config, bitstream),
            config,
            program.window_beats,
            device=device,
            phases=in_use(config, "board").phases,
        )
        try:
            # At the clock of this bitstream.
            super().__init__(opened, opened.config, timeout_s=TIMEOUT_S)
            self.load(model, program)
        except BaseException:
            opened.close()
            raise
