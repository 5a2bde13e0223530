"""Runs candidate programs under limits in warm Python 3.10 workers and judges them outside their process."""
