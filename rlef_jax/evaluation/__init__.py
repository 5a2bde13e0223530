"""Evaluates a policy or recorded responses on a benchmark: rollouts, n@k, intervals, error kinds over turns."""
