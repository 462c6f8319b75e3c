"""HTTP routes: wire schemas, and their translation to and from jobs."""
