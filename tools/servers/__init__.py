"""Real servers on this machine, for tests and tools: Slurm, S3, and a proxy that misbehaves."""
