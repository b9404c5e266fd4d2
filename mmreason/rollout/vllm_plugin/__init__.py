"""What `mmreason serve` puts on a vLLM server's path: one module that needs nothing of ours."""
