"""What is on disk: runs, checkpoints, weights, torch's files and names."""
