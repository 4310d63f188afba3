"""The ways in which weights travel from the trainer to inference servers.

Importing this package imports nothing else: parts of it run in the servers' own environments.
"""

__all__: list[str] = []
