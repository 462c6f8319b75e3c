"""`python -m server` is `flux-pulid`."""

from server.cli.main import app

app(prog_name="flux-pulid")
