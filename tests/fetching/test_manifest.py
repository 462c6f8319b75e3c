"""The table of checkpoints is whole, agrees with the tables of tensors, and says who states its figures."""

import re
from itertools import chain, product
from math import prod
from pathlib import Path
from typing import get_args

import pytest

from weights.manifest import (
    IN_FP8,
    MANIFEST,
    ROLES,
    BaseModel,
    Choice,
    HubFile,
    PulidVersion,
    candidates,
    named,
    needed,
)
from weights.paths import model_paths, present_or_default
from weights.tables import table

SOURCES = (Path(__file__).parents[2] / "docs/decisions/0008-weights-manifest.md").read_text()
FILES = tuple(chain.from_iterable(checkpoint.files for checkpoint in MANIFEST))
CHOICES = [
    Choice(base_model=base, pulid=pulid)
    for base, pulid in product(get_args(BaseModel), get_args(PulidVersion))
]
LARGEST_HEADER = 300_000  # bytes; FLUX's 1160 names take half of it


def test_names_and_paths_are_given_once():
    names = [checkpoint.name for checkpoint in MANIFEST]
    paths = [file.path for file in FILES]
    assert len({*names}) == len(names)
    assert len({*paths}) == len(paths)
    assert all(named(checkpoint.name) is checkpoint for checkpoint in MANIFEST)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.path)
def test_what_is_known_of_a_file_is_well_formed(file):
    assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
    assert (file.size is None) == (file.sha256 is None)
    assert not Path(file.path).is_absolute()
    assert ".." not in Path(file.path).parts
    assert file.source.address.startswith("https://")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.path)
def test_only_small_texts_have_no_hash(file):
    """So a fetch of what is in the table never needs `--trust-first`."""
    assert file.sha256 or Path(file.path).suffix in {".json", ".txt"}


@pytest.mark.parametrize("file", [file for file in FILES if file.sha256], ids=lambda file: file.path)
def test_every_figure_has_a_public_source(file):
    rows = [line for line in SOURCES.splitlines() if file.sha256 in line]
    assert rows, "its hash is not in docs/decisions/0008-weights-manifest.md"
    assert all("https://" in row and f"{file.size:,}" in row for row in rows)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.path)
def test_a_repository_is_named_with_a_commit_where_one_is_known(file):
    if isinstance(file.source, HubFile) and file.source.repo != "black-forest-labs/FLUX.1-Krea-dev":
        assert re.fullmatch(r"[0-9a-f]{40}", file.source.revision)
        assert file.source.revision in SOURCES


@pytest.mark.parametrize(
    ("name", "bytes_each"),
    [
        ("flux1-dev", 2),
        ("flux1-dev-diffusers", 2),
        ("flux1-dev-fp8", 1),
        ("flux1-krea-dev", 2),
        ("ae", 4),
        ("ae-diffusers", 2),
        ("t5-xxl", 2),
        ("t5-xxl-comfyui", 2),
        ("clip-l", 2),
        ("clip-l-comfyui", 2),
        ("pulid-v0.9.1", 2),
        ("pulid-v0.9.0", 2),
        ("retinaface", 4),
        ("bisenet", 4),
    ],
)
def test_the_sizes_are_those_of_the_tensors_and_a_header(name, bytes_each):
    """The tables come from the layouts, the sizes from elsewhere: that they agree speaks for both."""
    checkpoint = named(name)
    numbers = sum(prod(shape) for shape in table(checkpoint.table).required.values())
    if name == "t5-xxl-comfyui":  # has the embedding under both its names
        numbers += sum(prod(shape) for shape in table(checkpoint.table).optional.values())
    stored = sum(file.size or 0 for file in checkpoint.files)
    assert 0 < stored - numbers * bytes_each < LARGEST_HEADER


# ---- which one is taken ----


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("profile", ["exact", *IN_FP8])
def test_a_fetch_brings_one_layout_of_every_role(choice, profile):
    assert sorted(checkpoint.role for checkpoint in needed(choice, profile)) == sorted(ROLES)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_exact_never_takes_weights_of_eight_bits(choice):
    names = {checkpoint.name for role in ROLES for checkpoint in candidates(role, choice)}
    assert not [name for name in names if "fp8" in name]


def test_eight_bits_are_taken_where_they_are_asked_for_and_nothing_better_is_there(tmp_path):
    ready_made = tmp_path / "FLUX.1-dev/flux1-dev-fp8.safetensors"
    ready_made.parent.mkdir()
    ready_made.touch()
    assert model_paths(tmp_path, Choice(), "fp8").transformer == ready_made
    assert model_paths(tmp_path).transformer.name == "flux1-dev.safetensors"
    (tmp_path / "FLUX.1-dev/flux1-dev.safetensors").touch()
    assert model_paths(tmp_path, Choice(), "fp8").transformer.name == "flux1-dev.safetensors"


def test_no_files_are_needed_for_a_profile_without_any():
    assert needed(Choice(), "tiny") == []


def test_folders_are_taken_where_they_are_whole(tmp_path):
    folder = tmp_path / "FLUX.1-dev/transformer"
    folder.mkdir(parents=True)
    files = [tmp_path / file.path for file in named("flux1-dev-diffusers").files]
    for path in files[1:]:
        path.touch()
    assert present_or_default("transformer", tmp_path, Choice()).name == "flux1-dev"
    files[0].touch()
    assert present_or_default("transformer", tmp_path, Choice()).name == "flux1-dev-diffusers"
    assert model_paths(tmp_path).transformer == folder


def test_a_choice_takes_its_own_weights_and_shares_the_rest(tmp_path):
    paths = model_paths(tmp_path, Choice(base_model="flux1-krea-dev", pulid="v0.9.0"))
    assert paths.transformer == tmp_path / "FLUX.1-Krea-dev/flux1-krea-dev.safetensors"
    assert paths.pulid == tmp_path / "pulid_flux_v0.9.0.safetensors"
    assert paths.autoencoder == tmp_path / "FLUX.1-dev/ae.safetensors"


def test_a_converted_copy_is_taken_before_the_pickle(tmp_path):
    assert model_paths(tmp_path).eva_clip.suffix == ".pt"
    (tmp_path / "EVA02_CLIP_L_336_psz14_s6B.safetensors").touch()
    assert model_paths(tmp_path).eva_clip.suffix == ".safetensors"
