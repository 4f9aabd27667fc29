# The accelerator uses no pin: clock, reset and memory come from the processing system, whose IP brings their constraints.
set_property BITSTREAM.GENERAL.COMPRESS TRUE [current_design]
