"""Identity files: the identity tokens of one person as bytes, to be sent instead of photos.

A safetensors container: `id_embedding` (1, n, 2048) and, if known, `face_embedding` (512,), both in
float32, which holds bfloat16 without loss. Its metadata name the format, the version and the
checkpoint, because the tokens mean nothing to other networks than those that made them.

What is read comes from outside: size, header, shapes and values are checked before any of it is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pulid.errors import BadRequest, IdentityRejected
from pulid.identity.people import Identity

FORMAT = "flux-pulid-identity"
VERSION = "1"
MAX_BYTES = 4 * 2**20
MAX_PHOTOS = 12  # side by side; at full size 3 MiB
MAX_MAGNITUDE = 1e4  # far above any token; keeps sums of squares finite in float32
FACE_EMBEDDING_SIZE = 512

_MAX_HEADER_BYTES = 4096  # ours have about 300
_SAMPLED = 64  # numbers of each tensor that the fingerprint looks at


def write_identity(identity: Identity, checkpoint: str, *, tokens_per_photo: int) -> bytes:
    """Raises BadRequest for more photos side by side than a file may hold."""
    if identity.tokens.shape[1] > MAX_PHOTOS * tokens_per_photo:
        raise BadRequest(f"An identity file holds at most {MAX_PHOTOS} photos side by side. Use their mean.")
    tensors = {"id_embedding": identity.tokens.float().cpu().contiguous()}
    if identity.face_embedding is not None:
        tensors["face_embedding"] = torch.from_numpy(identity.face_embedding)
    return safetensors.torch.save(tensors, metadata_of(tensors, checkpoint))


def metadata_of(tensors: Mapping[str, Tensor], checkpoint: str) -> dict[str, str]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "checkpoint": checkpoint,
        "sha256": _digest_of(tensors),
    }


def _digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Of the numbers, tensor after tensor by name: a flipped bit would paint another face."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_identity(data: bytes, *, checkpoint: str, tokens_per_photo: int, token_width: int) -> Identity:
    """The identity in a file, on the CPU in float32. Raises IdentityRejected."""
    if len(data) > MAX_BYTES:
        raise IdentityRejected(f"An identity file has at most {MAX_BYTES // 2**20} MB.")
    header = _header(data)
    _check_metadata(header.get("__metadata__"), checkpoint)
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, KeyError, ValueError) as exc:  # KeyError: a type that torch does not have
        raise _damaged() from exc
    tokens, face_embedding = tensors.get("id_embedding"), tensors.get("face_embedding")
    if tensors.keys() - {"id_embedding", "face_embedding"} or tokens is None or tokens.ndim != 3:
        raise _damaged()
    photos = min(max(1, tokens.shape[1] // tokens_per_photo), MAX_PHOTOS)
    _check_values(tokens, (1, photos * tokens_per_photo, token_width))
    if face_embedding is not None:
        _check_values(face_embedding, (FACE_EMBEDDING_SIZE,))
        if not np.isclose(face_embedding.norm(), 1, atol=1e-3):
            raise _damaged()
    if header["__metadata__"].get("sha256") != _digest_of(tensors):
        raise _damaged()
    return Identity(tokens, None if face_embedding is None else face_embedding.numpy())


def _header(data: bytes) -> dict[str, Any]:
    """The container's JSON header; safetensors itself does not tell the metadata of bytes."""
    length = int.from_bytes(data[:8], "little")
    if length > _MAX_HEADER_BYTES:
        raise _damaged()
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as exc:
        raise _damaged() from exc
    if not isinstance(header, dict):
        raise _damaged()
    return header


def _check_metadata(metadata: object, checkpoint: str) -> None:
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise _damaged()
    if metadata.get("version") != VERSION:
        raise IdentityRejected(
            f"This identity file has another version than {VERSION}. Make it again from the photos."
        )
    if metadata.get("checkpoint") != checkpoint:
        raise IdentityRejected(
            "This identity file was made with another checkpoint than the one that is loaded."
            " Make it again from the photos."
        )


def _check_values(tensor: Tensor, shape: tuple[int, ...]) -> None:
    # A comparison with NaN is false.
    if tensor.dtype != torch.float32 or tensor.shape != shape or not (tensor.abs() <= MAX_MAGNITUDE).all():
        raise _damaged()


def _damaged() -> IdentityRejected:
    return IdentityRejected("This is no identity file, or it is damaged. Make it again from the photos.")


def fingerprint(networks: Iterable[nn.Module]) -> str:
    """Tells one checkpoint from another: SHA-256 over a fixed sample of each tensor.

    In bfloat16, so that one checkpoint has one fingerprint whether an engine holds it in bfloat16 or
    in float32. Names and their order are left out: they are the libraries' own.
    """
    samples = [_sample(tensor) for network in networks for tensor in network.parameters()]
    numbers = torch.cat(samples).view(torch.int16).cpu().numpy().tobytes()
    ends = np.cumsum([2 * len(sample) for sample in samples])
    pieces = sorted(numbers[end - 2 * len(sample) : end] for sample, end in zip(samples, ends, strict=True))
    return hashlib.sha256(b"".join(pieces)).hexdigest()


def _sample(tensor: Tensor) -> Tensor:
    """Up to _SAMPLED numbers, evenly spread."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, flat.numel() // _SAMPLED)][:_SAMPLED].bfloat16()
