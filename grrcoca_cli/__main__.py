"""``python -m grrcoca_cli``."""

from grrcoca_cli.cli import main

main()
