"""The HTTP server, the job queue and the command line of flux-pulid. Knows jobs, never tensors."""

__version__ = "0.1.0"
