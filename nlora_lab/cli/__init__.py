"""The command line ``nlora-lab``, around the same functions as in Python. Related commands share a module."""
