"""`python -m downpour`: the command line."""

from downpour.cli import main

main(prog_name="downpour")
