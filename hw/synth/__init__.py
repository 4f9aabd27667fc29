"""Synthesis as an instrument: resources and logic levels of the accelerator (Yosys), and routed ECP5 blocks (nextpnr)."""
