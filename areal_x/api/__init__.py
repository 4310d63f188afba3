"""Contracts of areal_x. Importing this package imports neither torch nor transformers."""
