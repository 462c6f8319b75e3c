"""Which checkpoint files exist, where they lie on this machine, and whether they are the right ones."""
