"""Inference engines. Importing ``EmbeddedEngine`` loads no torch: its model lives in another process."""

from areal_x.engine.inference.embedded import EmbeddedEngine

__all__ = ["EmbeddedEngine"]
