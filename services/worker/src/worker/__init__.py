"""Runs jobs: takes them from the bus, runs them in containers, stores their events."""
