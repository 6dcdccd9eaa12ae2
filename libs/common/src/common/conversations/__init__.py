"""Conversations: the stored messages of sessions, compressed, in segments (docs/adr/0017)."""
