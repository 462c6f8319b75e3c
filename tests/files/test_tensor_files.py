"""Checkpoint files are read as their own libraries read them; what is wrong is told, and nothing runs."""

import io
import json
import os
import pickle
import random
import struct
import time
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from files import hostile_pickles
from weights.errors import WrongFile
from weights.pickles import DTYPE_BITS, Damaged, Pickle, TensorInfo
from weights.tensor_files import MAX_HEADER, MAX_PICKLE, MAX_TENSORS, UnreadableFile, fingerprint, tensors_in

SAFETENSORS_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(value, path, *, zipped, protocol=2):
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    return path


def infos(state):
    return {key: TensorInfo(SAFETENSORS_NAMES[t.dtype], tuple(t.shape)) for key, t in state.items()}


def problem_of(path):
    with pytest.raises(WrongFile) as caught:
        tensors_in(path)
    assert str(caught.value) == f"{path} {caught.value.what}. Delete it and run `flux-pulid weights fetch`."
    return caught.value.what


@pytest.fixture(scope="module")
def state():
    return {f"blocks.{name}": torch.ones(3, 5).to(dtype) for dtype, name in SAFETENSORS_NAMES.items()}


# ---- safetensors ----


def test_a_safetensors_file_is_read_as_safetensors_wrote_it(tmp_path, state):
    state = {**state, "scalar": torch.zeros(()), "empty": torch.zeros(0, 4)}
    save_file(state, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert tensors_in(tmp_path / "x.safetensors") == infos(state)


def test_a_safetensors_file_cut_short_or_padded_is_refused(tmp_path, state):
    path = tmp_path / "x.safetensors"
    save_file(state, path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        assert problem_of(path)
    path.write_bytes(whole[:-3])
    assert problem_of(path) == "is cut short: 3 bytes are missing at its end"
    path.write_bytes(whole + b"\0" * 1234)
    assert problem_of(path) == "has 1,234 bytes too many at its end"


def file_with(path, header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS = {
    "no object": [1, 2],
    "no entry": {"a": 5},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 4]}},
    "unknown dtype": {"a": entry(0, 4, [1], "F31")},
    "dtype is a list": {"a": entry(0, 4, [1], ["F32"])},
    "offsets do not fit": {"a": entry(0, 8, [1])},
    "offsets backwards": {"a": entry(4, 0, [1])},
    "negative": {"a": entry(0, 4, [-1, -1])},
    "fractions": {"a": entry(0, 4, [1.0])},
    "truth as a number": {"a": entry(0, 4, [True])},
    "shape is an object": {"a": entry(0, 4, {"1": 1})},
    "a gap": {"a": entry(0, 4, [1]), "b": entry(8, 12, [1])},
    "an overlap": {"a": entry(0, 4, [1]), "b": entry(0, 4, [1])},
    "many dimensions": {"a": entry(0, 4, [1] * 100)},
    "metadata are no text": {"__metadata__": {"a": 1}},
    "metadata are a list": {"__metadata__": ["a"]},
    "a name to move the cursor": {"\x1b[2J": entry(0, 4, [1])},
    "half a character": b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    "a name twice": b'{"a": %b, "a": %b}'
    % ((b'{"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}',) * 2),
    "deep": b"[" * 100_000,
    "a number of many digits": b'{"a": ' + b"9" * 10_000 + b"}",
    "not UTF-8": b'{"\xff": 1}',
    "UTF-16": json.dumps({}).encode("utf-16"),
    "no JSON": b"{'a': 1}",
    "too many tensors": {f"{i}": entry(0, 0, [0]) for i in range(MAX_TENSORS + 1)},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_is_wrong_is_refused(tmp_path, name):
    path = file_with(tmp_path / "x.safetensors", HEADERS[name], b"\0" * 12)
    assert problem_of(path).startswith("has a damaged header")


def test_a_header_as_long_as_its_first_bytes_say_is_not_waited_for(tmp_path):
    path = tmp_path / "x.safetensors"
    for length in (2**64 - 1, MAX_HEADER + 1):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        assert problem_of(path) == "is no safetensors file: its header would be longer than any is"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPE_BITS, "", None]),
        "shape": st.lists(st.integers(-1, 3) | st.integers(), max_size=4) | JSON_VALUES,
        "data_offsets": st.lists(st.integers(-1, 16) | st.integers(), min_size=1, max_size=3) | JSON_VALUES,
    }
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def read_or_refuse(path):
    try:
        assert isinstance(tensors_in(path), dict)
    except UnreadableFile as exc:
        assert exc.what  # noqa: PT017 - either is right


@settings(max_examples=150, deadline=None)
@given(
    header=st.dictionaries(st.text(max_size=5), ENTRIES, max_size=3) | JSON_VALUES,
    body=st.binary(max_size=16),
)
def test_no_header_leads_to_anything_but_an_answer_or_a_refusal(scratch, header, body):
    read_or_refuse(file_with(scratch / "x.safetensors", header, body))


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=64), length=st.integers(0, 80))
def test_no_bytes_lead_to_anything_but_an_answer_or_a_refusal(scratch, data, length):
    (scratch / "x.safetensors").write_bytes(struct.pack("<Q", length) + data)
    read_or_refuse(scratch / "x.safetensors")
    (scratch / "x.pt").write_bytes(data)
    read_or_refuse(scratch / "x.pt")


# ---- torch.save ----


@FORMATS
def test_a_state_dict_is_read_as_torch_wrote_it(tmp_path, state, zipped):
    everything = {
        **state,
        "scalar": torch.zeros(()),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.ones(2, 3)),
        "transposed": torch.ones(2, 3).t(),
        "a view": torch.ones(10)[3:7],
        "shared": state["blocks.F32"],
    }
    assert tensors_in(save(everything, tmp_path / "x.pt", zipped=zipped)) == infos(everything)


@FORMATS
def test_a_modules_state_dict_with_its_versions_is_read(tmp_path, zipped):
    state = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).state_dict()
    assert state._metadata
    assert tensors_in(save(state, tmp_path / "x.pth", zipped=zipped)) == infos(state)


@FORMATS
def test_the_prefix_of_parallel_training_is_dropped(tmp_path, zipped):
    path = save(
        {"module.a.weight": torch.ones(2), "b.module.weight": torch.ones(1)},
        tmp_path / "x.pth",
        zipped=zipped,
    )
    assert tensors_in(path).keys() == {"a.weight", "b.module.weight"}


@FORMATS
@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"state_dict": {"a": torch.ones(1)}}, "is a training checkpoint: it has a dict 'state_dict'"),
        ({"a": torch.ones(1), "epoch": 7}, r"holds things that are no tensors (epoch)"),
        (torch.ones(1), "holds no state dict"),
        ({1: torch.ones(1)}, "holds no state dict"),
        ({"\x1b[2J": torch.ones(1)}, "has a tensor whose name cannot be printed"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, value, what, zipped):
    assert problem_of(save(value, tmp_path / "x.pt", zipped=zipped)).startswith(what)


@FORMATS
def test_a_torch_file_cut_short_is_refused(tmp_path, zipped):
    path = save({"a": torch.ones(40), "b": torch.ones(3).half()}, tmp_path / "x.pt", zipped=zipped)
    whole = path.read_bytes()
    for length in range(4, len(whole), 3):
        path.write_bytes(whole[:length])
        assert problem_of(path) == "is cut short, damaged, or no file of torch"


def test_a_legacy_file_with_bytes_after_its_end_is_refused(tmp_path):
    path = save({"a": torch.ones(40)}, tmp_path / "x.pt", zipped=False)
    path.write_bytes(path.read_bytes() + b"\0")
    assert problem_of(path) == "is cut short, damaged, or no file of torch"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x8a\x0al\xfc", b"\x8a\x0am\xfc"),  # the number that says: a file of torch
        (b"M\xe9\x03.", b"M\xea\x03."),  # the version of the format
        (b"\x80\x02]q\x00.", b"\x80\x02}q\x00."),  # the list of storages is a dict
    ],
)
def test_a_legacy_file_that_is_not_quite_one_is_refused(tmp_path, old, new):
    path = save({}, tmp_path / "x.pt", zipped=False)
    whole = path.read_bytes()
    assert whole.count(old) == 1
    path.write_bytes(whole.replace(old, new))
    assert problem_of(path) == "is cut short, damaged, or no file of torch"


@pytest.mark.parametrize("program", [b"\x80\x02N\x87.", b"\x80\x02.", b"\x80\x02h\x05.", b"\x80\x02U\x05ab."])
def test_a_pickle_that_takes_more_than_there_is_is_damaged(program):
    with pytest.raises(Damaged):
        Pickle(program)


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """The archive with the contents of its entries changed by `change(name, data) -> data or None`."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            if (changed := change(name, data)) is not None:
                archive.writestr(name, changed)
    return path


ARCHIVES = {
    "a storage is gone": lambda name, data: None if name.endswith("data/0") else data,
    "a storage is shorter": lambda name, data: data[:-4] if name.endswith("data/0") else data,
    "a storage is longer": lambda name, data: data + b"1234" if name.endswith("data/0") else data,
    "no pickle": lambda name, data: None if name.endswith("data.pkl") else data,
    "a pickle cut short": lambda name, data: data[:-5] if name.endswith("data.pkl") else data,
    "a long pickle": lambda name, data: b"N0" * MAX_PICKLE if name.endswith("data.pkl") else data,
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_does_not_hang_together_is_refused(tmp_path, name):
    path = save({"a": torch.ones(40)}, tmp_path / "x.pt", zipped=True)
    assert tensors_in(rewritten(path, lambda _, data: data))
    assert problem_of(rewritten(path, ARCHIVES[name])) == "is cut short, damaged, or no file of torch"


def test_a_compressed_archive_is_refused_before_anything_is_unpacked(tmp_path):
    path = save({"a": torch.ones(40)}, tmp_path / "x.pt", zipped=True)
    bomb = rewritten(
        path, lambda name, data: data + b"\0" * 50_000_000 if "pkl" in name else data, zipfile.ZIP_DEFLATED
    )
    assert bomb.stat().st_size < 100_000
    assert quickly(problem_of, bomb) == "is cut short, damaged, or no file of torch"


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_an_archive_with_two_pickles_of_one_name_is_refused(tmp_path):
    """Which of them is read depends on the reader."""
    path = save({"a": torch.ones(4)}, tmp_path / "x.pt", zipped=True)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
    assert problem_of(path) == "is cut short, damaged, or no file of torch"


def test_an_archive_with_a_huge_directory_is_refused_quickly(tmp_path):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("x" * 1000 + "/data.pkl", b"\x80\x02}.")
    directory = data.getvalue()[data.getvalue().index(b"PK\x01\x02") : -22]
    copies = 60_000
    start = data.getvalue()[: -22 - len(directory)]
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, copies, copies, len(directory) * copies, len(start), 0)
    (tmp_path / "x.pt").write_bytes(start + directory * copies + end)
    assert quickly(problem_of, tmp_path / "x.pt") == "is cut short, damaged, or no file of torch"


def quickly(function, *arguments):
    start = time.process_time()
    result = function(*arguments)
    assert time.process_time() - start < 5
    return result


MUCH_FROM_LITTLE = {
    "tuples of tuples": b"\x80\x02Nq\x00" + b"h\x00h\x00\x86q\x00" * 200_000 + b".",
    "as a key": b"\x80\x02}Nq\x00" + b"h\x00h\x00\x86q\x00" * 100 + b"Ns.",
    "copies of a long size": b"\x80\x02]("
    + b"N" * 500_000
    + b"eq\x000"
    + b"ctorch\nSize\nh\x00\x85R" * 100_000
    + b".",
    "a memo far out": b"\x80\x02Nr\xff\xff\xff\xff.",
    "a text longer than memory": b"\x80\x02X\xff\xff\xff\xff.",
    "marks": b"\x80\x02" + b"(" * 500_000 + b".",
    "no end": b"\x80\x02" + b"N" * 1_000_000,
}


@pytest.mark.parametrize("name", MUCH_FROM_LITTLE)
def test_a_pickle_that_makes_much_of_little_is_refused_quickly(tmp_path, name):
    path = save({"a": torch.ones(4)}, tmp_path / "x.pt", zipped=True)
    rewritten(path, lambda entry, data: MUCH_FROM_LITTLE[name] if "pkl" in entry else data)
    assert quickly(problem_of, path)
    path.write_bytes(MUCH_FROM_LITTLE[name])
    assert quickly(problem_of, path)


@FORMATS
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path, zipped):
    path = save({"a": torch.ones(40)}, tmp_path / "x.pt", zipped=zipped)

    # K\x28\x85 is the shape (40,): made (41,) where it is that of the tensor.
    def grown(data):
        return data.replace(b"K\x28\x85", b"K\x29\x85", 1)

    if zipped:
        rewritten(path, lambda name, data: grown(data) if "pkl" in name else data)
    else:
        path.write_bytes(grown(path.read_bytes()))
    assert problem_of(path) == "is cut short, damaged, or no file of torch"


@FORMATS
def test_files_with_random_bytes_in_them_are_read_or_refused(tmp_path, zipped):
    path = save({"a.b": torch.ones(6), "c": torch.ones(2).half()}, tmp_path / "x.pt", zipped=zipped)
    whole = path.read_bytes()
    chance = random.Random(7)
    for _ in range(800):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(damaged)
        read_or_refuse(path)


# ---- nothing runs ----


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("zipped", [True, False, None], ids=["zip", "legacy", "plain"])
def test_no_object_in_any_place_runs(tmp_path, protocol, zipped):
    mark = tmp_path / "it-ran"
    for what, value in hostile_pickles.objects(mark).items():
        for where, holder in hostile_pickles.places(value).items():
            path = tmp_path / "x.pt"
            if zipped is None:
                path.write_bytes(pickle.dumps(holder, protocol))
            else:
                save(holder, path, zipped=zipped, protocol=protocol)
            assert problem_of(path).startswith("holds code or objects, not only tensors"), (what, where)
            assert not mark.exists(), (what, where)


@pytest.mark.parametrize("wrapped", [True, False], ids=["in an archive", "plain"])
def test_no_program_runs(tmp_path, wrapped):
    mark = tmp_path / "it-ran"
    for name, program in {**hostile_pickles.programs(mark), **hostile_pickles.ODDITIES}.items():
        path = save({}, tmp_path / "x.pt", zipped=True)
        if wrapped:
            rewritten(path, lambda entry, data, program=program: program if "pkl" in entry else data)
        else:
            path.write_bytes(program)
        assert problem_of(path).startswith("holds code or objects, not only tensors"), name
        assert not mark.exists(), name


def test_a_state_dict_in_a_newer_pickle_protocol_is_told_so(tmp_path):
    """Torch's own weights_only reader does not take it either."""
    path = save({"a": torch.ones(1)}, tmp_path / "x.pt", zipped=True, protocol=4)
    assert "(it has pickle protocol 4, and torch writes 2)" in problem_of(path)


def test_a_program_after_the_state_dict_of_a_legacy_file_does_not_run(tmp_path):
    mark = tmp_path / "it-ran"
    path = save({}, tmp_path / "x.pt", zipped=False)
    whole = path.read_bytes()
    assert whole.endswith(b"]q\x00.")  # the last of the five pickles: the storages, none
    path.write_bytes(whole.removesuffix(b"\x80\x02]q\x00.") + hostile_pickles.programs(mark)["INST"])
    assert "holds code" in problem_of(path)
    assert not mark.exists()


def test_the_hostile_pickles_do_run_where_they_are_unpickled(tmp_path):
    """Else the tests above would show nothing."""
    mark = tmp_path / "it-ran"
    armed = [pickle.dumps(value) for value in hostile_pickles.objects(mark).values()]
    for program in [*armed, *hostile_pickles.programs(mark).values()]:
        pickle.loads(program)  # noqa: S301
        assert mark.exists()
        mark.unlink()


# ---- files that are none ----


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a git-lfs pointer"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"<html lang=en>", "is a web page"),
        (bytes(100_000), "begins with zeros"),
    ],
)
def test_what_was_downloaded_instead_of_a_model_is_recognised(tmp_path, suffix, content, what):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    assert problem_of(path).startswith(what)


def test_other_suffixes_folders_and_absent_files_are_refused(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"x")
    (tmp_path / "folder.pt").mkdir()
    assert problem_of(tmp_path / "x.bin") == "has none of the suffixes .pt, .pth, .safetensors"
    assert problem_of(tmp_path / "folder.pt") == "cannot be read: Is a directory"
    assert problem_of(tmp_path / "absent.pt") == "cannot be read: No such file or directory"


# ---- fingerprints ----


def test_a_fingerprint_tells_sizes_and_contents_apart(tmp_path):
    path = tmp_path / "x"
    data = bytearray(os.urandom(1 << 20))
    seen = set()
    for change in ("none", "first byte", "last byte", "a block in the middle", "cut"):
        if change == "first byte":
            data[0] ^= 1
        elif change == "last byte":
            data[-1] ^= 1
        elif change == "a block in the middle":
            data[500_000:520_000] = bytes(20_000)
        elif change == "cut":
            del data[-1]
        path.write_bytes(data)
        assert fingerprint(path) == fingerprint(path)
        seen.add(fingerprint(path))
    assert len(seen) == 5


def test_small_and_empty_files_have_fingerprints_too(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").write_bytes(b"{}")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


def test_of_a_file_of_the_real_size_only_the_header_and_a_few_blocks_are_read(tmp_path):
    """24 GB that are not there (a sparse file) under a header like FLUX's: whole, it would take minutes."""
    header, at = {}, 0
    for index in range(1160):
        size = 20_500_000
        header[f"transformer_blocks.{index}.weight"] = entry(at, at + size, [size // 2], "BF16")
        at += size
    path = file_with(tmp_path / "x.safetensors", header)
    os.truncate(path, path.stat().st_size + at)
    assert len(tensors_in(path)) == 1160
    assert len(fingerprint(path)) == 64
