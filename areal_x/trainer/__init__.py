"""The training loop, its warm start, evaluation and the wiring of the roles."""
