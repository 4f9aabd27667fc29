"""The screened output head: candidates chosen by ternary scores, then scored exactly."""
