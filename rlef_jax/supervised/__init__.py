"""Supervised fine-tuning: token sequences to learn from, where they come from, and the loop that trains on them."""
