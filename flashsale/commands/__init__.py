"""The command line, one module a command; `cli.py` wires them up and imports each only when it is called."""
