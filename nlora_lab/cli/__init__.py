"""The command line ``nlora-lab``: one module per command or pair of related commands, around the same functions as in Python."""
