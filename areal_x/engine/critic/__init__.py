"""The critic: a value model, its loss and its training."""
