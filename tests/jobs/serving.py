"""A job service over real storage and real worker processes, with a scripted engine in them."""

import asyncio
import base64
import json
import sqlite3
from contextlib import asynccontextmanager, closing, contextmanager
from io import BytesIO

import psycopg
from PIL import Image
from prometheus_client import CollectorRegistry

from fakes import Script
from pulid.engine import GenerationRequest
from pulid.errors import BadRequest
from server.jobs.face_stage import FaceStage
from server.jobs.files import OutputOptions
from server.jobs.job import JobState
from server.jobs.live import ParsedBody
from server.jobs.places import folder_of
from server.jobs.runner import JobLimits
from server.jobs.service import JobService
from server.jobs.storage import JobStorage
from server.metrics import JobMetrics
from server.security.image_decode import check_image, decode_image

PATIENCE_S = 20.0


def png(image):
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


PICTURE = png(Image.new("RGB", (64, 48), (200, 120, 40)))
PHOTO = base64.b64encode(PICTURE).decode()


def scenario(test):
    """Run an async test with a service factory bound to its folder."""

    def run(tmp_path):
        def here(**options):
            return serving(tmp_path, **{"photo": PHOTO, "picture": PICTURE, **options})

        asyncio.run(asyncio.wait_for(test(here), 90))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


class Unparsable(BadRequest):
    code = "unparsable_body"


def parse(body):
    """A wire of its own, so that these tests do not depend on the contract."""
    try:
        fields = json.loads(body)
    except ValueError:
        raise Unparsable("not JSON") from None
    photos = fields.pop("photos", None)
    photos = [fields.pop("photo")] if photos is None else photos
    fields.pop("photo", None)
    if "refuse" in fields:
        raise BadRequest(fields["refuse"])
    defaults = {"seed": 1, "width": 256, "height": 256, "num_steps": 2}
    return ParsedBody(
        request=GenerationRequest(**{**defaults, **fields}),
        photos=tuple(photos),
        output=OutputOptions(format="png"),
        places=tuple(f"photos[{number}]" for number in range(len(photos))) if len(photos) > 1 else (),
    )


class Photos:
    """What is fetched: the base64 itself, or a URL held back until the test lets it through."""

    def __init__(self, picture):
        self.picture = picture
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self, url):
        await self.gate.wait()
        return self.picture


class Serving:
    """A service with the words a test needs."""

    def __init__(self, service, script, photos, photo):
        self.service, self.script, self.photos, self.photo = service, script, photos, photo

    def body(self, prompt="p", **fields):
        return json.dumps({"prompt": prompt, "photo": self.photo, **fields}).encode()

    async def submit(self, prompt="p", *, key="", api="v2", deadline_s=60.0, idempotency_key=None, **fields):
        record = await self.service.submit(
            self.body(prompt, **fields),
            key=key,
            api=api,
            deadline_s=deadline_s,
            idempotency_key=idempotency_key,
        )
        return record.id

    async def ended(self, job_id):
        return await asyncio.wait_for(self.service.wait(job_id), PATIENCE_S)

    async def run(self, prompt="p", **how):
        return await self.ended(await self.submit(prompt, **how))

    async def state(self, job_id, key=""):
        return (await self.service.view(job_id, key=key)).record.state

    async def processing(self, job_id, key=""):
        async with asyncio.timeout(PATIENCE_S):
            while await self.state(job_id, key) is not JobState.PROCESSING:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(
    tmp_path,
    *,
    photo,
    picture,
    parse=parse,
    gated=False,
    devices=("a",),
    load_error=None,
    fails_on=(),
    min_free_bytes=0,
    ready=True,
    make_pool=None,
    **limits,
):
    script_folder = tmp_path / "script"
    script_folder.mkdir(exist_ok=True)
    script = Script(script_folder, gated=gated, load_error=load_error, fails_on=fails_on)
    photos = Photos(picture)
    lost = []
    registry = CollectorRegistry()
    service = JobService(
        storage=JobStorage(
            tmp_path / "data", min_free_bytes=min_free_bytes, shared=shared_places(tmp_path, devices)
        ),
        devices=devices,
        create_engine=script,
        decode_photo=decode_image,
        parse=parse,
        face_stage=FaceStage(fetch=photos.fetch, check=check_image, max_mb=20.0),
        limits=JobLimits(**{"stop_timeout_s": 0.3, **limits}),
        metrics=JobMetrics(registry),
        on_lost=lost.append,
        make_pool=make_pool,
    )
    await service.start()
    try:
        if ready:
            await until(lambda: service.not_ready_reason is None)
        here = Serving(service, script, photos, photo)
        here.lost, here.registry = lost, registry
        yield here
    finally:
        await service.close()


def shared_places(tmp_path, devices):
    """Where several servers would share their jobs; these tests have one, unless others replace this."""
    return


def data_of(here):
    return here.service._storage._data_dir


def bodies_of(here):
    """Bodies and photos on disk, wherever the service keeps them."""
    shared = here.service._storage.shared
    folders = [data_of(here).bodies] + ([] if shared is None else [folder_of(shared.media_url) / "bodies"])
    return [path for folder in folders for path in folder.iterdir()]


def picture_path(here, record):
    return here.service._storage.media.path(record.media_id, "0.png")


def connection_to(here):
    shared = here.service._storage.shared
    if shared is not None:
        return psycopg.connect(shared.database_url, autocommit=True)
    return closing(sqlite3.connect(data_of(here).database, isolation_level=None))


def stored_states(here):
    with connection_to(here) as other:
        return [state for (state,) in other.execute("SELECT state FROM jobs ORDER BY number")]


@contextmanager
def locked_database(here):
    """Another program writes to the database and does not come to an end."""
    is_shared = here.service._storage.shared is not None
    with connection_to(here) as other:
        other.execute("BEGIN" if is_shared else "BEGIN IMMEDIATE")
        if is_shared:
            other.execute("LOCK TABLE jobs, media, servers IN EXCLUSIVE MODE")
        yield
        other.execute("ROLLBACK")


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what it asks about is in other processes, too
            await asyncio.sleep(0.005)
