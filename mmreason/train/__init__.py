"""Training: the step, the stages, the distributed backend, checkpoints, metrics, and the run around them."""
