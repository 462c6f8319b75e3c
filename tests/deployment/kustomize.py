"""What `kubectl kustomize` makes of a folder, for the few things that configs/kubernetes uses.

Knows resources, one namespace, images, generated ConfigMaps with the hash in their name, and JSON patches of
one object. Refuses everything else, so that no kustomization says something that is silently left out here.
A release test compares it with the real program. Applies nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]  # one of Kubernetes' objects

KNOWN = {"apiVersion", "kind", "namespace", "resources", "configMapGenerator", "images", "patches"}
GENERATOR = {"name", "behavior", "literals", "options"}
WITHOUT_NAMESPACE = {"Namespace"}
# Kustomize follows the name of a generated ConfigMap into the objects that it knows, and into no others.
FOLLOWED = {"Deployment", "Job"}
HASHED = "its name gets a hash"  # a mark at an object while it is made


class NotKnown(Exception):
    """A kustomization says something that this renderer cannot do."""


def build(folder: Path) -> list[Object]:
    """All objects of the folder's kustomization."""
    objects = _gathered(folder)
    for made in [item for item in objects if item.pop(HASHED, False)]:
        _rename(objects, made)
    return objects


def _gathered(folder: Path) -> list[Object]:
    """With generated names as they are before the hash is added, so that an overlay finds them."""
    said = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if set(said) - KNOWN:
        raise NotKnown(f"{folder}: {sorted(set(said) - KNOWN)}")
    objects = [item for name in said["resources"] for item in _resource(folder / name)]
    for generator in said.get("configMapGenerator", []):
        _generate(objects, generator)
    for patch in said.get("patches", []):
        _patch(objects, patch)
    for item in objects:
        if "namespace" in said and item["kind"] not in WITHOUT_NAMESPACE:
            item["metadata"]["namespace"] = said["namespace"]
        for image in said.get("images", []):
            _replace_image(item, image)
    return objects


def _resource(path: Path) -> list[Object]:
    if path.is_dir():
        return _gathered(path)
    return [deepcopy(item) for item in yaml.safe_load_all(path.read_text())]


def _generate(objects: list[Object], generator: Object) -> None:
    if set(generator) - GENERATOR:
        raise NotKnown(f"configMapGenerator: {sorted(set(generator) - GENERATOR)}")
    data = dict(literal.split("=", 1) for literal in generator["literals"])
    if generator.get("behavior", "create") == "merge":
        find(objects, "ConfigMap", generator["name"])["data"].update(data)
        return
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data}
    if not generator.get("options", {}).get("disableNameSuffixHash", False):
        made[HASHED] = True
    objects.append(made)


def _patch(objects: list[Object], patch: Object) -> None:
    target = patch["target"]
    found = find(objects, target["kind"], target["name"])
    for step in yaml.safe_load(patch["patch"]):
        if step["op"] not in ("add", "replace"):
            raise NotKnown(f"the operation {step['op']} in a patch")
        *way, last = (int(part) if part.isdecimal() else part for part in step["path"].split("/")[1:])
        place: Any = found
        for part in way:
            place = place[part]
        is_there = last in place if isinstance(place, dict) else last < len(place)
        if is_there is (step["op"] == "add"):  # Kustomize would replace what is there, or insert beside it
            raise KeyError(step["path"])
        if isinstance(place, list) and last == len(place):
            place.append(step["value"])
        else:
            place[last] = step["value"]


def _replace_image(item: Object, image: Object) -> None:
    for container in containers_in(item):
        if container["image"] == image["name"]:
            container["image"] = f"{image['newName']}:{image['newTag']}"


def _rename(objects: list[Object], made: Object) -> None:
    old = made["metadata"]["name"]
    made["metadata"]["name"] = f"{old}-{hash_of(made)}"
    for item in objects:
        for container in containers_in(item) if item["kind"] in FOLLOWED else []:
            for source in container.get("envFrom", []):
                if source.get("configMapRef", {}).get("name") == old:
                    source["configMapRef"]["name"] = made["metadata"]["name"]


def hash_of(config_map: Object) -> str:
    """As Kustomize makes it: ten letters of a hash, without vowels and look-alikes."""
    # Go's form of JSON: sorted, without spaces. The name has always been empty here.
    told = {"kind": "ConfigMap", "name": "", "data": config_map["data"]}
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()[:10].translate(str.maketrans("013ae", "ghkmt"))


def find(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = [item for item in objects if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    return found


def pod_templates_in(item: Any) -> Iterator[Object]:
    """Every pod template of an object, wherever it lies in it: of a Job, a Deployment or a RayService."""
    if isinstance(item, dict):
        spec = item.get("spec")
        if isinstance(spec, dict) and "containers" in spec:
            yield item
        for value in item.values():
            yield from pod_templates_in(value)
    elif isinstance(item, list):
        for value in item:
            yield from pod_templates_in(value)


def containers_in(item: Object) -> list[Object]:
    return [
        container
        for template in pod_templates_in(item)
        for kind in ("containers", "initContainers")
        for container in template["spec"].get(kind, [])
    ]
