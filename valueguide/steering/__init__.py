"""Chooses which of the policy's proposals runs: V-GPS re-ranking, its fallbacks, and the controls."""
