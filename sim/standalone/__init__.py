"""A test bench for the Verilog alone: recorded passes, a memory, and what must come out, for plain Verilator or any simulator
of SystemVerilog. No Python runs in it."""
