"""`python -m service` is `belong`."""

from service.cli import main

main(prog_name="belong")
