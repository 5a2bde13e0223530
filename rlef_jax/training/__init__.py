"""What owns processes, devices and files during a run: rollouts, checkpoints, metrics, progress, saved episodes."""
