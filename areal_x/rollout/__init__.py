"""Rollouts: episodes in flight under a staleness bound, assembled into groups, streamed to the trainer."""
