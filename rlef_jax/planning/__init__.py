"""Predicts a run's memory, operations, communication and time from its compiled programs."""
