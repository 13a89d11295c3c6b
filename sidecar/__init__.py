"""How does the gateway run? Settings, processes, wiring, command line, metrics and logs."""
