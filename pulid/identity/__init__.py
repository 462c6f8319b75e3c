"""Photo to identity tokens, and their cross-attention."""
