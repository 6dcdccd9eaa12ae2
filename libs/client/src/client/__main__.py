"""`python -m client` is `orchestrator`."""

from client.cli import main

main()
