"""Control: registers, the program, what is read and started when, errors and counters."""
