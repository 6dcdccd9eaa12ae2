"""The models that answer chat turns: one module for each provider's SDK, one protocol between them and the turns."""
