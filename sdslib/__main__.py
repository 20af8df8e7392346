"""`python -m sdslib` is `sdsclip`."""

from sdslib.commands.program import main

main()
