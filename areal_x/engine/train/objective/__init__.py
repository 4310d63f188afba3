"""The objective of the policy: losses of tokens, corrections for older weights, KL, entropy, aggregation."""
