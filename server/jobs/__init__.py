"""Jobs: one accepted request each, from submit to result."""
