"""Rollouts: prompts in, trajectories out."""
