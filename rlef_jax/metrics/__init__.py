"""Metrics over finished episodes: n@k and summaries. Used by both training and evaluation."""
