"""`python -m downpour`: the command line."""

import sys

if "--of-parent" in sys.argv:  # before anything that takes long to import
    from downpour.parent import follow

    follow()

from downpour.cli import main

main(prog_name="downpour")
