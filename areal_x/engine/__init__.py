"""Engines: inference, training, and new models."""

__all__: list[str] = []
