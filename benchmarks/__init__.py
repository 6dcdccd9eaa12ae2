"""Measurements. Each module prints one JSON object as its last line; benchmarks/README.md says how to read it."""
