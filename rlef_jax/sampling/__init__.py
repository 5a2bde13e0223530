"""Sampling from the model: the reference distribution and the jitted multi-turn sampler."""
