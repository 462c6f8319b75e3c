"""What can be wrong with a machine before the server runs on it: one small function for each question."""
