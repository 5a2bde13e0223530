"""What is counted over episodes, below whoever makes them: n@k and summaries."""
