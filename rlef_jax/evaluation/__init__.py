"""What a set of episodes says of a policy: n@k, solve rates, intervals, error kinds."""
