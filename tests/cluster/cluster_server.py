"""The staged server as one of several: two scripted engines, and a lease that a test can wait for.

    python tests/cluster/cluster_server.py --lease-s=2 --script=FOLDER serve --database-url=... ...

A lease is a constant of the server on purpose: nobody who runs it needs to turn it.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import server.app
import staged_server

DEVICES = ("cpu:0", "cpu:1")


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--lease-s", type=float, required=True)
    ours, rest = parser.parse_known_args()
    places = partial(server.app.SharedPlaces, lease_s=ours.lease_s)
    server.app.SharedPlaces = places  # type: ignore[misc, assignment]
    replacements = staged_server.replacements

    def two_devices(staging: argparse.Namespace) -> dict[str, object]:
        return replacements(staging) | {"devices": DEVICES}

    staged_server.replacements = two_devices
    sys.argv[1:] = rest
    staged_server.main()


if __name__ == "__main__":
    main()
