"""Models of the vendor's primitives: ours (sim/primitives), and those of others that ours are held against or give way to.

AMD's are read where they lie, made fit for Verilator into the build folder, and never copied into the project.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

OURS = {p.stem: p for p in sorted((Path(__file__).parent / "primitives").glob("*.sv"))}
"""Our models by primitive."""

UNISIMS = "TELLME_UNISIMS"
"""Environment variable: AMD's models stand in for ours in every simulation; a folder that `unisims_folder` takes."""

UNISIMS_ARGS = ("-Wno-fatal", "-Wno-lint", "-Wno-style")
"""Of Verilator, for AMD's models: without remarks on text that is not ours."""


class ModelError(ValueError):
    """A model that is not there, or not what is expected of it; the message says where and what to do."""


def unisims_folder(root: Path) -> Path:
    """Folder of AMD's models, given it, a folder above it in a Vivado installation (data/verilog/src or further up), or
    a checkout of XilinxUnisimLibrary.

    Raises
    ------
    ModelError : the models are not there.
    """
    for below in ("", "unisims", "verilog/src/unisims", "data/verilog/src/unisims"):
        folder = root / below
        if all((folder / f"{name}.v").is_file() for name in OURS):
            return folder.resolve()
    raise ModelError(
        f"no {', '.join(f'{name}.v' for name in OURS)} in {root}: give Vivado's folder data/verilog/src, "
        "or a checkout of github.com/Xilinx/XilinxUnisimLibrary"
    )


def unisim(name: str, root: Path, rename: str | None = None) -> str:
    """AMD's model of a primitive as Verilator takes it: without global reset, delays and tests for high impedance.

    Its parameters stay variables, large as that makes a simulation: as constants (its form XIL_XECLIB) they would start
    none of its processes, and it would leave out initial values.

    Parameters
    ----------
    rename : name of the module instead.

    Raises
    ------
    ModelError : no such model, or one of another style.
    """
    path = unisims_folder(root) / f"{name}.v"
    if not path.is_file():
        raise ModelError(f"{path} does not exist")
    text = path.read_text(errors="replace")
    text = re.sub(r"\btri0\s+glblGSR\s*=\s*glbl\.GSR\s*;", "wire glblGSR = 1'b0;", text)
    # What is connected is never 1'bz.
    text = re.sub(r"[\w\[\]:]+\s*===\s*1'bz", "1'b0", text)
    text = re.sub(r"[\w\[\]:]+\s*!==\s*1'bz", "1'b1", text)
    text = re.sub(r"#\s*\d+(\.\d+)?", "", text)
    code = re.sub(r"//[^\n]*", "", text)
    if found := re.search(r"\S*(===\s*1'bz|!==\s*1'bz|\bglbl\.|#\s*[\d.])", code):
        raise ModelError(f"{path}: {found[0]!r} is not known here")
    return _renamed(text, name, rename, path)


def cell(name: str, path: Path, rename: str | None = None) -> str:
    """Text of one module of a Verilog file of many.

    Raises
    ------
    ModelError : no such module.
    """
    match = re.search(rf"^module {name}\b.*?^endmodule\b", path.read_text(), re.M | re.S)
    if match is None:
        raise ModelError(f"{path} has no module {name}")
    return _renamed(match[0] + "\n", name, rename, path)


def _renamed(text: str, name: str, rename: str | None, path: Path) -> str:
    if rename is None:
        return text
    text, count = re.subn(rf"(?m)^(\s*module\s+){name}\b", rf"\g<1>{rename}", text)
    if count != 1:
        raise ModelError(f"{path} has {count} modules {name}, not one")
    return text


def _written(text: str, folder: Path, name: str) -> Path:
    """A file of that text, in a folder below `folder` that no other text has."""
    path = folder / hashlib.sha256(text.encode()).hexdigest()[:16] / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(text)
        os.replace(part, path)
    return path


def primitives(folder: Path, names: tuple[str, ...] = tuple(OURS)) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Models that simulations use: files, and arguments of Verilator. AMD's if $TELLME_UNISIMS is set, else ours.

    Parameters
    ----------
    folder : where AMD's are written as Verilator takes them.
    """
    root = os.environ.get(UNISIMS)
    if not root:
        return tuple(OURS[name] for name in names), ()
    return tuple(_written(unisim(name, Path(root)), folder, f"{name}.v") for name in names), UNISIMS_ARGS


def cells(folder: Path, paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """Files of Yosys's models of cells; if $TELLME_UNISIMS is set, AMD's RAM32M16 stands in for theirs."""
    root = os.environ.get(UNISIMS)
    if not root:
        return paths
    ram = _written(unisim("RAM32M16", Path(root)), folder, "RAM32M16.v")
    texts = [re.sub(r"^module RAM32M16\b.*?^endmodule\b", "", p.read_text(), flags=re.M | re.S) for p in paths]
    return (ram, *(_written(t, folder, p.name) for t, p in zip(texts, paths, strict=True)))
