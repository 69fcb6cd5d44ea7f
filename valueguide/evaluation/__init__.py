"""Runs arms on the same initial states and says honestly what differs: rollouts, statistics, report."""
