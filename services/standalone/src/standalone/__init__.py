"""MCP Orchestrator on one machine: `python -m standalone up`, `python -m standalone demo`."""
