"""Candidate programs: run under limits in warm Python 3.10 workers, judged outside their process."""
