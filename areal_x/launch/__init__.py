"""Composing the configuration of a run and starting runs from it. Needs neither torch nor transformers."""
