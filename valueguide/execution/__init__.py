"""From chunks to control steps: synchronised observations, prefetch, seams, takeover. Pure; no clock."""
