"""Which checkpoint files exist, and where they lie on this machine."""
