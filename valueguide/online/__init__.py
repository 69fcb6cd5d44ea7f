"""Learning while working (ALOE): segments, replay, targets from the current policy, improvement, learner."""
