"""Docstrings of the components name the ports that they have, all of them."""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from amaranth.hdl import Fragment
from amaranth.lib import wiring

import tellme.hw
from tellme.golden.config import TINY
from tellme.hw.platforms.ulx3s import ULX3SSelfTest
from tellme.hw.selftest import SelfTest
from tellme.hw.top import Accelerator

WHOLE = (Accelerator, SelfTest)
"""What holds one of every component."""

_SECTION = re.compile(r"^Interface attributes\n-+\n(.*?)(?=^\S[^\n]*\n---|\Z)", re.M | re.S)
_ITEM = re.compile(r"^(\S.*?) :", re.M)


def classes() -> Iterator[type[wiring.Component]]:
    for module in pkgutil.walk_packages(tellme.hw.__path__, "tellme.hw."):
        for _, found in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(found, wiring.Component) and found.__module__ == module.name:
                yield found


@pytest.fixture(scope="module")
def components() -> dict[type[wiring.Component], wiring.Component]:
    """One of each class that an accelerator and the self-test are made of."""
    found: dict[type[wiring.Component], wiring.Component] = {}
    init = wiring.Component.__init__

    def noted(self: wiring.Component, *args: object) -> None:
        init(self, *args)  # type: ignore[arg-type]
        found.setdefault(type(self), self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring.Component, "__init__", noted)
        # First, so that components are those with the ports of every format of weights, and of what is built on demand.
        Fragment.get(Accelerator(replace(TINY, weight_format="grouped", hadamard=True)), None)
        for component in WHOLE:
            Fragment.get(component(TINY), None)
        ULX3SSelfTest(TINY)
    return found


def wrong(component: wiring.Component) -> tuple[set[str], set[str]]:
    """Names in the list that are no ports, and ports that nothing there names."""
    sections = (_SECTION.search(inspect.cleandoc(base.__doc__ or "")) for base in type(component).__mro__)
    text = next((section[1] for section in sections if section), "")
    heads = {name for head in _ITEM.findall(text) for name in re.split(r", |; | -> ", head.replace("`", ""))}
    named = heads | set(re.findall(r"`(\w+)`", text))
    ports = set(component.signature.members)
    return (
        {name for name in heads if not fnmatch.filter(ports, name)},
        {port for port in ports if not any(fnmatch.fnmatchcase(port, name) for name in named)},
    )


CLASSES = {f"{c.__module__}.{c.__qualname__}".removeprefix("tellme.hw."): c for c in classes()}


@pytest.mark.parametrize("name", CLASSES)
def test_docstrings_name_the_ports_that_exist(
    name: str, components: dict[type[wiring.Component], wiring.Component]
) -> None:
    assert CLASSES[name] in components, f"{name} is in none of {WHOLE}: dead, or to be added there"
    found = wrong(components[CLASSES[name]])
    assert not any(found), "in the docstring and no port: {}; ports and not in the docstring: {}".format(*found)
