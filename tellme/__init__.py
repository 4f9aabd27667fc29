"""tellme: generator of ternary-LLM accelerators for edge FPGA boards.

The parts are folders of the repository's top level, which this package links to (docs/decisions.md): `tellme.golden` the
specification in NumPy, `tellme.hw` the hardware in Amaranth, `tellme.sim` its simulation, `tellme.host` driver and command.
"""
