# The accelerator uses no pin: clock, reset and memory come from the processing system, whose IP brings their constraints.
set_property BITSTREAM.GENERAL.COMPRESS TRUE [current_design]
# A chip that overheats switches itself off (UG570).
set_property BITSTREAM.CONFIG.OVERTEMPSHUTDOWN ENABLE [current_design]
