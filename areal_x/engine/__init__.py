"""Engines: inference, training, and new models."""
