"""Data sources: each is `problem_at(...)`, a pure function from a split, a seed and an index to a `Problem`."""
