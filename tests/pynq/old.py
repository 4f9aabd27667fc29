"""PYNQ 3.0.1, what a KV260 has, beside the newer one of this environment: an environment of its own, made once.

`python -m tests.pynq.old` makes it in `pynq301/` of the environment that runs it (or in the folder that TELLME_PYNQ301
names): the packages of `requirements-3.0.1.txt`, on Python 3.10 as on the boards where there is one, and in `overlays/`
hand-offs and bitstreams that pynq's source distribution ships, as Vivado wrote them. It is made again when the
requirements change.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements-3.0.1.txt")
FOLDER = Path(os.environ.get("TELLME_PYNQ301") or Path(sys.prefix) / "pynq301")
OVERLAYS = FOLDER / "overlays"
PYTHON = FOLDER / "bin" / "python"
_STAMP = FOLDER / "made"


def _stamp() -> str:
    return hashlib.sha256(REQUIREMENTS.read_bytes() + Path(__file__).read_bytes()).hexdigest()


def _interpreter() -> str:
    """Python 3.10 if there is one that can make environments, on PATH or of pyenv, else the one that runs this."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for name in ("python3.10", *map(str, pyenv.glob("versions/3.10.*/bin/python3.10")), sys.executable):
        try:
            subprocess.run([name, "-c", "import ensurepip, venv"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return name
    raise SystemExit(f"{sys.executable} cannot make environments (no venv or ensurepip); on Debian: python3-venv")


@contextmanager
def _alone() -> Iterator[None]:
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with open(FOLDER.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make() -> Path:
    """The environment's Python; makes the environment where it is missing or of other requirements."""
    with _alone():
        if _STAMP.is_file() and _STAMP.read_text() == _stamp():
            return PYTHON
        shutil.rmtree(FOLDER, ignore_errors=True)
        subprocess.run([_interpreter(), "-m", "venv", str(FOLDER)], check=True)
        pip = [str(PYTHON), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        source = FOLDER / "source"
        subprocess.run(
            [*pip, "download", "--no-deps", "--no-binary=pynq", "pynq==3.0.1", "--dest", str(source)], check=True
        )
        (archive,) = source.iterdir()
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name)
                if name.stem == "base" and name.suffix in (".hwh", ".bit") and name.parts[2] in ("Pynq-Z2", "ZCU104"):
                    data = tar.extractfile(member)
                    assert data is not None
                    # <board>-<overlay>, for instance ZCU104-base
                    path = OVERLAYS / f"{name.parts[2]}-{name.name}"
                    path.parent.mkdir(exist_ok=True)
                    path.write_bytes(data.read())
        subprocess.run(
            [*pip, "install", "--use-pep517", "--find-links", str(source), "--requirement", str(REQUIREMENTS)],
            check=True,
        )
        shutil.rmtree(source)
        _STAMP.write_text(_stamp())
        return PYTHON


if __name__ == "__main__":
    make()
