"""Asynchronous reinforcement learning of language models, built around workflows."""
