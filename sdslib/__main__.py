"""`python -m sdslib` is `sdsclip`."""

from sdslib.cli import main

main()
