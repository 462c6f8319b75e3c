"""Small checkpoints in the published formats, put on the stand-in's shelves."""

import hashlib
import io
import json
from pathlib import PurePosixPath

import numpy as np
import torch
from safetensors.numpy import save

from hub_server import COMMIT
from weights.licences import FLUX_DEV
from weights.manifest import Checkpoint, HubFile, ReleaseFile, WeightFile

REPO = "black-forest-labs/FLUX.1-dev"


def safetensors(seed=0, *, count=4, size=1024):
    """`count` tensors of `size` numbers each: 4 KB each by default."""
    numbers = np.random.default_rng(seed)
    return save({f"{seed}.{index}": numbers.random(size, np.float32) for index in range(count)})


def shards():
    """A checkpoint in two files, with its config and the index of its keys."""
    parts = {f"t5/model-0000{n}-of-00002.safetensors": safetensors(seed=n) for n in (1, 2)}
    keys = {
        f"{n}.{index}": PurePosixPath(path).name
        for n, path in enumerate(parts, start=1)
        for index in range(4)
    }
    index = {"metadata": {"total_size": 8 * 4096}, "weight_map": keys}
    return {
        "t5/config.json": b'{"model_type": "t5"}',
        "t5/model.safetensors.index.json": json.dumps(index).encode(),
        **parts,
    }


def pickle(seed=0):
    file = io.BytesIO()
    torch.save({"weight": torch.full((32, 32), float(seed))}, file)
    return file.getvalue()


def onnx(seed=0):
    """The outermost fields of a model: its version and its graph."""
    graph = bytes([seed]) * 3000
    return b"\x08\x08" + b"\x3a" + bytes([len(graph) & 0x7F | 0x80, len(graph) >> 7]) + graph


def published(hub, name, files, *, known=True, repo=REPO, gated=False, release=False, how=None, **fields):
    """Put files on the shelves; the checkpoint of them. `known`: the manifest has sizes and hashes.

    `how` they are served: see hub_server.Published.
    """
    entries = []
    for path, data in files.items():
        if release:
            source = ReleaseFile(url=hub.add_release(path, data, **(how or {})))
        else:
            hub.add(repo, path, data, **(how or {}))
            source = HubFile(repo=repo, path=path, revision=COMMIT, gated=gated)
        size, sha256 = (len(data), hashlib.sha256(data).hexdigest()) if known else (None, None)
        entries.append(WeightFile(path=path, source=source, size=size, sha256=sha256))
    if gated:
        hub.gated.add(repo)
    path = next(iter(files)) if len(files) == 1 else str(PurePosixPath(next(iter(files))).parent)
    fields = {"role": "autoencoder", "licence": FLUX_DEV, **fields}
    return Checkpoint(name=name, path=path, files=tuple(entries), **fields)


def whole_model(hub):
    """One checkpoint of every kind."""
    return [
        published(hub, "ae", {"ae.safetensors": safetensors()}),
        published(hub, "t5", shards(), role="t5", known=False),
        published(hub, "eva", {"eva.pt": pickle()}, role="eva_clip", repo="QuanSun/EVA-CLIP"),
        published(hub, "faces", {"faces/a.onnx": onnx(1), "faces/b.onnx": onnx(2)}, role="antelopev2"),
        published(hub, "retinaface", {"retinaface.pth": pickle(1)}, role="retinaface", release=True),
    ]


class Watcher:
    """Who watches a fetch: remembers what it was told."""

    def __init__(self):
        self.announced = []
        self.bytes = 0
        self.finished = {}

    def planned(self, downloads):
        self.announced = [download.item.file.path for download in downloads]

    def received(self, file, count):
        self.bytes += count

    def checking(self, file):
        """Tests look at what comes of it."""

    def done(self, file, entry):
        self.finished[file.path] = entry


def files_in(home):
    """Content by path, of all that has a final name."""
    return {
        path.relative_to(home).as_posix(): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and not path.relative_to(home).parts[0].startswith((".fetch", "weights.lock"))
    }


def unexpected(hub):
    """What was asked for that is no file, such as a client's wish to know more."""
    known = ("/resolve/", "/releases/", "/release/", "/large/")
    return [one.path for one in hub.seen if not any(part in one.path for part in known)]
