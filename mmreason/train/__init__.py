"""Training: the step, the SFT and GRPO loops, the distributed backend, checkpoints, metrics, and the run around them."""
