"""Reward models in the training loop, and their training."""
