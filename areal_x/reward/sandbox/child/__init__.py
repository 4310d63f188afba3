"""The sandbox's inner side: runs in interpreters of its own, on the standard library, and imports nothing of areal_x.

``runner`` (privileged in its namespaces, never reads a program) forks for each run an isolated ``member``, the first
process of a PID namespace, which forks what does the work: ``program`` (the model's code) or ``checker`` (the tests).
"""
