"""What `tellme verilog` and `tellme build` write beside the Verilog: header, README."""

from __future__ import annotations

from collections.abc import Mapping

from tellme.golden.config import AcceleratorConfig

VERILOG = {"tellme.v": "the accelerator, module `tellme`"}


def beside(config: AcceleratorConfig, files: Mapping[str, str], *, project: bool = False) -> dict[str, str]:
    """Files beside the Verilog, by their path.

    Parameters
    ----------
    files : path of every file that is written besides, and what it is.
    project : it is a board's project.

    Raises
    ------
    ImportError : the generator is not installed.
    """
    from tellme.hw.delivery import header, readme

    about = {**files, header.NAME: "the registers as a C header"}
    return {
        header.NAME: header.header(config),
        readme.NAME: readme.readme(config, about, project=project),
    }
