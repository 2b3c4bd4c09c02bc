"""`python -m multiref.cli`: the same as the command `multiref`."""

from multiref.cli import main

main()
