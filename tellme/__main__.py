"""`python -m tellme`: the command."""

from tellme.host.cli import main

main()
