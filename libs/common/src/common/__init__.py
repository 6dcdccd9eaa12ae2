"""What the services share. Import the modules; this package exports nothing by itself."""
