"""The train engine and its mathematics."""
