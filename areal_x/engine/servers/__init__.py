"""Inference servers (vLLM, SGLang, any OpenAI-compatible endpoint) behind the contract of inference engines.

Importing this package imports nothing else: parts of it run in the servers' own environments.
"""

__all__: list[str] = []
