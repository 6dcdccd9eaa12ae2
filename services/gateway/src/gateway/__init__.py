"""The gateway: doors for clients, in front of the store. Import the modules; this exports nothing by itself."""
