"""A Ray cluster of one machine, on loopback, with the server's application; ends with its input.

    python tests/cluster/ray_program.py PORT TEMP_FOLDER ARGUMENTS

ARGUMENTS is JSON: what `server.ray_serve.build_app` takes, and `script`, the folder of a scripted engine.
Says "Listening on http://..." when the application runs, "states ..." when it reads `states`, and "down"
when nothing of Ray is left.
"""

import json
import sys
from pathlib import Path

import ray
from ray import serve

from fakes import Script
from server.ray_serve import RayArguments, application

CPUS = 16  # places for replicas; none of them is busy for long
OBJECT_STORE = 80 * 2**20  # bytes


def main() -> None:
    port, temp_folder, text = sys.argv[1:]
    arguments = json.loads(text)
    folder = arguments.pop("script", None)
    start(temp_folder)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
        app = application(RayArguments(**arguments), create_engine=Script(Path(folder)) if folder else None)
        serve.run(app, name="flux-pulid")
        say(f"Listening on http://127.0.0.1:{port}")
        for line in sys.stdin:
            if line == "states\n":
                say(f"states {json.dumps(states())}")
        serve.shutdown()
    finally:
        ray.shutdown()
    say("down")


def start(temp_folder: str) -> None:
    """Ray gives its own processes half a minute to start, which is little on a busy machine."""
    for tries_left in reversed(range(3)):
        try:
            ray.init(
                include_dashboard=False,
                num_cpus=CPUS,
                object_store_memory=OBJECT_STORE,
                _node_ip_address="127.0.0.1",
                _temp_dir=temp_folder,
            )
        except Exception:
            ray.shutdown()
            if not tries_left:
                raise
        else:
            return


def states() -> dict[str, dict[str, int]]:
    """How many replicas are in which state, by deployment."""
    deployments = serve.status().applications["flux-pulid"].deployments
    return {name: deployment.replica_states for name, deployment in deployments.items()}


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
