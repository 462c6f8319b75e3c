"""A job service in a process of its own, which begins a job, says its id, and waits to be killed.

python tests/cluster/doomed_service.py DATABASE_URL FOLDER LEASE_S
"""

import asyncio
import sys
from functools import partial
from pathlib import Path

import jobs.serving
from server.jobs.places import SharedPlaces


async def main(database: str, folder: Path, lease_s: float) -> None:
    places = partial(
        SharedPlaces, database_url=database, media_url=f"file://{folder}/shared", lease_s=lease_s
    )
    jobs.serving.shared_places = lambda root, devices: places(devices=len(devices))
    (folder / "shared").mkdir(exist_ok=True)
    own = folder / "doomed"
    own.mkdir()
    async with jobs.serving.serving(own, photo=jobs.serving.PHOTO, picture=b"", gated=True) as here:
        job_id = await here.submit()
        await here.processing(job_id)
        print(job_id, flush=True)  # noqa: T201 - what the test waits for
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
