"""The tiny engine in a worker process: the pictures on disk are those that the engine paints.

Of a photo that the worker has read before, too, and then without decoding it.
"""

import multiprocessing
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from model.portraits import PHOTOS, generate, photo, portrait, within_one_level
from server.engines import create_engine
from server.jobs.files import MediaFiles, OutputOptions
from server.jobs.messages import Admit, EngineReady, Finished, Prepare, Prepared, Stop
from server.jobs.worker import EXIT_STOPPED, WorkerSetup, run_worker
from server.security.image_decode import decode_image

PATIENCE_S = 120.0  # importing torch on a busy machine is slow

REQUESTS = {  # job -> photo, request
    "collins": ("collins", portrait("collins", num_outputs=2)),
    "obama": ("obama", portrait("obama", seed=5, true_cfg=2.0, start_step=1)),
    "ardern": ("ardern", portrait("ardern", seed=6, id_weight=2.0, width=320)),
    "again": ("collins", portrait("collins", seed=7)),
}


@pytest.fixture
def worker(tmp_path):
    """(pipe, process) of a worker whose engine is being loaded."""
    setup = WorkerSetup(
        device="cpu",
        create_engine=partial(create_engine, profile="tiny", weights_dir=tmp_path, face_mode="one-face"),
        decode_photo=partial(decode_image, max_megapixels=60.0),
        media=MediaFiles(tmp_path),
    )
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=run_worker, args=(theirs, setup), daemon=True)
    process.start()
    theirs.close()
    yield ours, process
    process.kill()
    process.join()
    ours.close()


def told(pipe):
    assert pipe.poll(PATIENCE_S)
    return pipe.recv()


def test_jobs_that_are_prepared_beside_each_other_get_the_pictures_they_get_alone(worker, tiny, tmp_path):
    pipe, process = worker
    media = {name: f"{number:032x}" for number, name in enumerate(REQUESTS)}
    for name, (person, request) in REQUESTS.items():
        order = Prepare(
            job_id=name,
            request=replace(request, id_images=()),
            photos=(PHOTOS / f"{person}.jpg",),
            output=OutputOptions(format="png"),
            media_id=media[name],
        )
        pipe.send(order)
        pipe.send(Admit(name))
    ready = told(pipe)
    assert isinstance(ready, EngineReady)
    assert ready.info == tiny.info
    events = []
    while sum(isinstance(event, Finished) for event in events) < len(REQUESTS):
        events.append(told(pipe))
    prepared = {event.job_id: event for event in events if isinstance(event, Prepared)}
    for name, is_known in (("collins", False), ("again", True)):
        assert prepared[name].cache_hits["identity"] is is_known
        assert ("decode_photo" in prepared[name].timings) is not is_known
    for name, (person, request) in REQUESTS.items():
        alone = generate(tiny, replace(request, id_images=(photo(person),)))
        for number, image in enumerate(alone.images):
            stored = np.asarray(Image.open(tmp_path / media[name] / f"{number}.png"))
            assert within_one_level(stored, image), name  # another process may have other threads
    pipe.send(Stop())
    process.join(PATIENCE_S)
    assert process.exitcode == EXIT_STOPPED
