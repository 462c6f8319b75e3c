"""Records the cases of several photos, several people and chosen faces, from this project's own float32.

    cd tests && OMP_NUM_THREADS=1 python -m golden.record_people

Not part of a test run. `test_people.py` holds what it wrote against a plain computation.
"""

import pulid.torchvision_guard  # noqa: F401

# isort: split
import json

import torch
from safetensors.torch import save_file

from golden import goldens, people_loops
from golden.chosen_faces import ORDERS, crowd, read_face, tiny_reader
from pulid.identity.attention import FoldedIdentity
from pulid.identity.face_weights import vectron_analysis

FILE = "people_open.safetensors"
LEFT, RIGHT = {"box": [0.0, 0.1, 0.45, 1.0]}, {"box": [0.5, 0.0, 0.95, 0.85]}
SOFT = {"mask": {"name": "soft", "h": 12, "w": 15}}


def person(*photos, fusion="mean", weight=1.0, start_step=0, end_step=None, region=None):
    return {
        "photos": photos,
        "fusion": fusion,
        "weight": weight,
        "start_step": start_step,
        "end_step": end_step,
        "region": region,
    }


PEOPLE = {
    "photos.mean": [person("anna.0", "anna.1", "anna.2", weight=1.05)],
    "photos.concat": [person("anna.0", "anna.1", "anna.2", fusion="concat", weight=1.05)],
    "photos.concat.guided": [person("anna.0", "anna.1", fusion="concat", start_step=1)],
    "end_step": [person("anna.0", start_step=1, end_step=3)],
    "people.boxes": [person("anna.0", region=LEFT), person("bert.0", weight=1.3, region=RIGHT)],
    "people.mask.guided": [person("anna.0", region=SOFT), person("bert.0", "bert.1", weight=0.7)],
    "people.four.guided": [
        person("anna.0", region=LEFT, end_step=2),
        person("bert.0", "bert.1", fusion="concat", weight=0.6, region=RIGHT, start_step=1),
        person("carl.0", weight=1.5, region={"box": [0.3, 0.3, 0.75, 0.6]}, start_step=2),
        person("dora.0", weight=0.4, region=SOFT, end_step=3),
    ],
}


def loop_case(name, people):
    guided = name.endswith("guided")
    shapes = {"noise": [1, 16, 12, 14], "txt": [1, 9, 80], "vec": [1, 48]}
    shapes |= {"neg_txt": [1, 9, 80], "neg_vec": [1, 48]} if guided else {}
    return {
        "id": name,
        "kind": "people_loop",
        "model": "A",
        "height": 90,
        "width": 100,
        "txt_len": 9,
        "num_steps": 4,
        "guidance": 4.0,
        "true_cfg": 2.5 if guided else 1.0,
        "timestep_to_start_cfg": 1,
        "people": people,
        "inputs": {
            key: {"name": f"people.{key}", "shape": shape, "seed": 51} for key, shape in shapes.items()
        },
        "tol": 5e-4,
        "file": FILE,
        "outputs": {"latents_packed": {"key": f"{name}.latents_packed"}},
    }


def face_case(index, order):
    name = f"face.{order}.{index}"
    outputs = {key: {"key": f"{name}.{key}"} for key in ("face_embedding", "aligned_sub")}
    return {
        "id": name,
        "kind": "face_choice",
        "index": index,
        "order": order,
        "tol": 1e-2,
        "file": FILE,
        "outputs": outputs,
    }


@torch.inference_mode()
def main():
    loops = [loop_case(name, people) for name, people in PEOPLE.items()]
    faces = [face_case(index, order) for order in ORDERS for index in (0, 3)]
    tensors = {
        f"{c['id']}.latents_packed": people_loops.denoise(c, FoldedIdentity).contiguous() for c in loops
    }
    reader = tiny_reader(vectron_analysis())
    for case in faces:
        for key, array in read_face(reader, crowd(), case).items():
            tensors[f"{case['id']}.{key}"] = torch.from_numpy(array.copy())
    save_file(tensors, goldens.HERE / "open" / FILE)
    manifest = json.dumps(loops + faces, indent=1)
    (goldens.HERE / "open" / "manifest.people.json").write_text(manifest + "\n")


if __name__ == "__main__":
    main()
