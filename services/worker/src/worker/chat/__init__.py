"""Chat turns: a model that answers a user by calling the session's tools (docs/adr/0018)."""
