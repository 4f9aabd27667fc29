"""What goes with the Verilog to those who work with it alone: C header of the registers, README."""
