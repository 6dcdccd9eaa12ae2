"""How a job is put to a container: `mcp` speaks the protocol, `exec` runs a command."""
