"""The command line ``nlora-lab``: one module per command, around the same functions as in Python."""
