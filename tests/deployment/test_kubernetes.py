"""The kustomizations of configs/kubernetes, built and read. No cluster: nothing is applied here."""

import ipaddress
import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml
from fastapi.routing import iter_route_contexts

from deployment.kustomize import NotKnown, build, containers_in, find, hash_of, pod_templates_in
from docs.dockerfile import read_dockerfile, words_of
from docs.markdown import blocks
from docs.project_files import ROOT, project_files, text_of
from pulid.profiles import PROFILES
from server.app import create_app
from server.engines import require_fitting
from server.settings import Settings, SettingsError, load_settings

FOLDER = ROOT / "configs" / "kubernetes"
APPLIED = (
    "bases/model-files",
    "overlays/model-files-shared",
    "overlays/single-gpu",
    "overlays/multi-gpu",
    "overlays/several-servers",
    "overlays/kuberay",
)
WITH_ONE_SERVER = ("overlays/single-gpu", "overlays/multi-gpu")
WITH_SERVERS = (*WITH_ONE_SERVER, "overlays/several-servers")
SHARING = ("overlays/several-servers", "overlays/kuberay")
VERSIONS = ("1.32", "1.37")  # of Kubernetes: the oldest and the newest that kubernetes-validate knows
CUSTOM = {"RayService"}  # no schema of Kubernetes has them
USER = 10001

# Of the custom resource of KubeRay 1.4 and later; what is said elsewhere in it would be dropped or refused.
RAY_SERVICE = {"serveConfigV2", "rayClusterConfig"}
RAY_CLUSTER = {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
HEAD_GROUP = {"rayStartParams", "template"}
WORKER_GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


@pytest.fixture(scope="module")
def built():
    return {name: build(FOLDER / name) for name in APPLIED}


@pytest.fixture(params=APPLIED)
def objects(built, request):
    return built[request.param]


@pytest.fixture(params=WITH_SERVERS)
def server(built, request):
    """The objects of an overlay with servers in pods of their own."""
    return built[request.param]


@pytest.fixture(params=WITH_ONE_SERVER)
def lone_server(built, request):
    """The objects of an overlay with one server, which shares nothing."""
    return built[request.param]


@pytest.fixture(params=SHARING)
def sharing(built, request):
    """The objects of an overlay with servers that share their jobs."""
    return built[request.param]


def templates(objects):
    return [template for item in objects for template in pod_templates_in(item)]


def container_of(objects):
    (container,) = containers_in(find(objects, "Deployment", "flux-pulid"))
    return container


def environment_of(objects, container):
    """Names and values that a container gets; of a Secret the name alone, where it is named."""
    sources = [
        source["configMapRef"]["name"] for source in container.get("envFrom", []) if "configMapRef" in source
    ]
    given = {
        key: value for name in sources for key, value in find(objects, "ConfigMap", name)["data"].items()
    }
    return given | {variable["name"]: variable.get("value") for variable in container.get("env", [])}


def image_environment():
    return read_dockerfile(DEVICE="gpu").environment_of("server")


# what Kubernetes takes


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_what_the_schemas_of_kubernetes_allow(objects, version):
    checked = [item for item in objects if item["kind"] not in CUSTOM]
    assert checked
    for item in checked:
        kubernetes_validate.validate(item, version, strict=True)


def test_every_pod_inside_a_custom_resource_is_what_the_schemas_allow(built):
    pods = list(pod_templates_in(find(built["overlays/kuberay"], "RayService", "flux-pulid")))
    assert len(pods) == 2
    for template in pods:
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)


def test_a_field_with_a_wrong_name_would_be_noticed(built):
    volume = find(build(FOLDER / "overlays/single-gpu"), "PersistentVolumeClaim", "data")
    volume["spec"]["accessMode"] = ["ReadWriteOnce"]
    with pytest.raises(kubernetes_validate.ValidationError, match="accessMode"):
        kubernetes_validate.validate(volume, VERSIONS[-1], strict=True)


def test_no_two_objects_have_one_name(objects):
    names = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(set(names)) == len(names)


def test_everything_is_in_the_namespace_that_has_the_walls(objects):
    assert {item["metadata"]["namespace"] for item in objects if item["kind"] != "Namespace"} == {
        "flux-pulid"
    }


def test_deleting_a_server_leaves_the_namespace_and_the_model_files(built):
    for name in (*WITH_SERVERS, "overlays/kuberay"):
        kinds = {(item["kind"], item["metadata"]["name"]) for item in built[name]}
        assert not kinds & {("Namespace", "flux-pulid"), ("PersistentVolumeClaim", "model-files")}


@pytest.mark.release
@pytest.mark.parametrize("name", APPLIED)
def test_kubectl_builds_the_same_objects(built, name):
    program = shutil.which("kubectl")
    if program is None:
        pytest.fail("This test needs kubectl 1.27 or later on the PATH; it asks no cluster.")
    done = subprocess.run([program, "kustomize", FOLDER / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(done.stdout)}
    assert theirs == {(item["kind"], item["metadata"]["name"]): item for item in built[name]}


# the renderer of the tests


def test_a_generated_name_has_the_hash_that_kustomize_gives():
    config_map = {"metadata": {"name": "s"}, "data": {"A": "b"}}
    assert hash_of(config_map) == "b9t2424hkf"


def test_what_the_renderer_does_not_know_is_refused(tmp_path):
    (tmp_path / "kustomization.yaml").write_text("namePrefix: a-\nresources: []\n")
    with pytest.raises(NotKnown, match="namePrefix"):
        build(tmp_path)


def test_a_patch_of_what_is_not_there_is_refused(tmp_path):
    (tmp_path / "volume.yaml").write_text("kind: A\nmetadata: {name: b}\nspec: {}\n")
    patch = "[{op: replace, path: /spec/replicas, value: 1}]"
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [volume.yaml]\npatches: [{{target: {{kind: A, name: b}}, patch: '{patch}'}}]\n"
    )
    with pytest.raises(KeyError, match="replicas"):
        build(tmp_path)


# what the server takes


def test_every_variable_is_a_setting_or_the_token_of_the_hub(objects):
    ours = {f"FLUX_PULID_{name.upper()}" for name in Settings.model_fields}
    others = {"HF_TOKEN", "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"}
    for item in objects:
        for container in containers_in(item):
            assert set(environment_of(objects, container)) <= ours | others


def test_the_settings_are_accepted_as_image_and_overlay_together_give_them(objects, monkeypatch):
    for item in objects:
        for container in containers_in(item):
            given = image_environment() | environment_of(objects, container)
            with monkeypatch.context() as patched:
                for name, value in given.items():
                    if name.startswith("FLUX_PULID_"):
                        patched.setenv(name, value)
                settings = load_settings().settings
            require_fitting(PROFILES[settings.profile], settings.devices, ())


def test_no_service_writes_its_address_into_a_setting(objects):
    """For a Service flux-pulid, Kubernetes would set FLUX_PULID_PORT in every pod of the namespace."""
    assert all(template["spec"]["enableServiceLinks"] is False for template in templates(objects))


def test_every_route_that_is_probed_is_served(server, tmp_path):
    app = create_app(Settings(profile="tiny", data_dir=tmp_path))
    served = {context.path for context in iter_route_contexts(app.routes)}
    container = container_of(server)
    probed = {
        kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")
    }
    assert probed == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}
    assert set(probed.values()) <= served


def test_the_port_is_the_images_and_reaches_service_and_probes(server):
    (port,) = read_dockerfile().arguments_of("server", "EXPOSE")
    container = container_of(server)
    assert container["ports"] == [{"name": "http", "containerPort": int(port)}]
    assert [entry["targetPort"] for entry in find(server, "Service", "flux-pulid")["spec"]["ports"]] == [
        "http"
    ]
    assert {
        container[f"{kind}Probe"]["httpGet"]["port"] for kind in ("startup", "liveness", "readiness")
    } == {"http"}
    (rule,) = find(server, "NetworkPolicy", "server-ingress")["spec"]["ingress"]
    assert rule == {"ports": [{"protocol": "TCP", "port": int(port)}]}


def test_a_pod_is_given_longer_to_end_than_the_server_takes_to_drain(objects):
    long_lived = [
        template for template in templates(objects) if template["spec"].get("restartPolicy") != "Never"
    ]
    for template in long_lived:
        (container,) = template["spec"]["containers"]
        drain_s = float(environment_of(objects, container)["FLUX_PULID_DRAIN_S"])
        before_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert template["spec"]["terminationGracePeriodSeconds"] >= before_s + drain_s + 20


def test_what_the_services_and_policies_select_is_there(objects):
    labels = [template["metadata"]["labels"].items() for template in templates(objects)]
    for item in objects:
        selector = item["spec"].get("selector") if item["kind"] == "Service" else None
        if item["kind"] in ("NetworkPolicy", "PodDisruptionBudget"):
            chosen = item["spec"].get("podSelector", item["spec"].get("selector"))
            selector = chosen.get("matchLabels", {})
        if item["metadata"]["name"] == "shared-state-egress":
            continue  # of two kinds of servers, of which an overlay has one
        if selector is not None:
            assert any(selector.items() <= these for these in labels)


# one server for each data folder


def test_one_server_uses_the_data_folder_and_ends_before_the_next_begins(lone_server):
    users = [
        item
        for item in lone_server
        for template in pod_templates_in(item)
        for volume in template["spec"]["volumes"]
        if volume.get("persistentVolumeClaim", {}).get("claimName") == "data"
    ]
    (deployment,) = users
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert find(lone_server, "PersistentVolumeClaim", "data")["spec"]["accessModes"] == ["ReadWriteOnce"]


# servers that share their jobs


def test_servers_that_share_their_jobs_have_data_folders_of_their_own_and_no_claim(sharing):
    assert not [item for item in sharing if item["kind"] == "PersistentVolumeClaim"]
    for template in templates(sharing):
        (container,) = template["spec"]["containers"]
        (mounted,) = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/data"]
        (volume,) = [volume for volume in template["spec"]["volumes"] if volume["name"] == mounted]
        assert set(volume) == {"name", "emptyDir"}


def test_what_they_share_comes_from_a_secret_as_settings_of_both(sharing):
    for template in templates(sharing):
        (container,) = template["spec"]["containers"]
        assert {"secretRef": {"name": "shared-state"}} in container["envFrom"]
    with pytest.raises(SettingsError, match="go together"):  # so a half of it is noticed
        load_settings(flags={"database_url": "postgresql://a/b"})


def test_one_of_them_is_replaced_after_the_other(built):
    objects = built["overlays/several-servers"]
    deployment = find(objects, "Deployment", "flux-pulid")["spec"]
    assert deployment["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0},
    }
    budget = find(objects, "PodDisruptionBudget", "servers")["spec"]
    assert deployment["replicas"] == budget["minAvailable"] + 1
    assert container_of(objects)["lifecycle"]["preStop"]["sleep"]["seconds"] >= 5


def test_they_are_spread_over_nodes_as_far_as_gpus_are_free(built):
    template = find(built["overlays/several-servers"], "Deployment", "flux-pulid")["spec"]["template"]
    (spread,) = template["spec"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == (
        "kubernetes.io/hostname",
        "ScheduleAnyway",
    )
    assert spread["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_a_pod_that_is_not_ready_blocks_no_drain(sharing):
    (budget,) = [item["spec"] for item in sharing if item["kind"] == "PodDisruptionBudget"]
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_the_way_to_what_they_share_is_open_to_servers_alone_and_leads_nowhere_until_it_is_filled_in(sharing):
    policy = find(sharing, "NetworkPolicy", "shared-state-egress")["spec"]
    (chosen,) = policy["podSelector"]["matchExpressions"]
    assert (chosen["key"], chosen["operator"]) == ("app.kubernetes.io/name", "In")
    names = {template["metadata"]["labels"]["app.kubernetes.io/name"] for template in templates(sharing)}
    assert names < set(chosen["values"])
    assert "flux-pulid-fetch" not in chosen["values"]
    assert policy["policyTypes"] == ["Egress"]
    for rule in policy["egress"]:
        (to,) = rule["to"]
        network = ipaddress.ip_network(to["ipBlock"]["cidr"])
        assert network.subnet_of(ipaddress.ip_network("192.0.2.0/24"))  # RFC 5737: for documents
        assert network.num_addresses == 1
        assert [entry["protocol"] for entry in rule["ports"]] == ["TCP"]


def test_every_claim_of_a_pod_is_made_by_its_overlay_or_with_the_model_files(built):
    (files,) = [item for item in built["bases/model-files"] if item["kind"] == "PersistentVolumeClaim"]
    for objects in built.values():
        claims = {item["metadata"]["name"] for item in objects if item["kind"] == "PersistentVolumeClaim"}
        used = {
            volume["persistentVolumeClaim"]["claimName"]
            for template in templates(objects)
            for volume in template["spec"]["volumes"]
            if "persistentVolumeClaim" in volume
        }
        assert used <= claims | {files["metadata"]["name"]}


def test_model_files_for_several_nodes_can_be_mounted_on_several(built):
    modes = {
        name: find(built[name], "PersistentVolumeClaim", "model-files")["spec"]["accessModes"]
        for name in APPLIED[:2]
    }
    assert modes == {APPLIED[0]: ["ReadWriteOnce"], APPLIED[1]: ["ReadWriteMany"]}


# walls


def test_every_pod_is_an_ordinary_user_without_rights(objects):
    (user,) = read_dockerfile().arguments_of("server", "USER")
    assert user == f"{USER}:{USER}"
    for template in templates(objects):
        assert template["spec"]["automountServiceAccountToken"] is False
        assert template["spec"]["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        }


def test_every_container_has_a_root_that_is_not_written_and_no_capability(objects):
    for item in objects:
        for container in containers_in(item):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_the_namespace_refuses_pods_with_less(built):
    labels = find(built["bases/model-files"], "Namespace", "flux-pulid")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_what_the_image_writes_is_mounted_and_model_files_are_written_by_the_job_alone(objects):
    environment = image_environment()
    volumes = [path for line in read_dockerfile().arguments_of("server", "VOLUME") for path in words_of(line)]
    assert volumes == [environment["FLUX_PULID_WEIGHTS_DIR"], environment["HOME"]]
    for item in objects:
        for container in containers_in(item):
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            assert {environment["HOME"], "/tmp"} <= set(mounts)
            assert all(not mounts[path].get("readOnly") for path in (environment["HOME"], "/tmp"))
            if files := mounts.get(environment["FLUX_PULID_WEIGHTS_DIR"]):
                assert files.get("readOnly", False) is (item["kind"] != "Job")


def test_a_job_fetches_the_model_files_and_does_nothing_else(built):
    (container,) = containers_in(find(built["bases/model-files"], "Job", "fetch-model-files"))
    assert container["command"] == ["flux-pulid", "weights", "fetch"]


def test_gpus_are_asked_for_and_as_many_as_the_setting_means(built):
    asked = {}
    for name in WITH_SERVERS:
        container = container_of(built[name])
        resources = container["resources"]
        assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"]
        devices = environment_of(built[name], container)["FLUX_PULID_DEVICES"]
        asked[devices] = resources["limits"]["nvidia.com/gpu"]
    assert asked == {"0": 1, "all": 8}


def test_every_container_says_what_it_needs(objects):
    for item in objects:
        for container in containers_in(item):
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]


def gib(quantity):
    return (
        int(quantity.removesuffix("Gi"))
        if quantity.endswith("Gi")
        else int(quantity.removesuffix("Mi")) / 1024
    )


def test_a_pod_may_fill_its_folders_on_the_node_before_it_is_evicted(objects):
    """The kubelet counts them, and the log, against the sum of what its containers may have."""
    for template in templates(objects):
        (container,) = template["spec"]["containers"]
        resources = container["resources"]
        folders = [volume["emptyDir"] for volume in template["spec"]["volumes"] if "emptyDir" in volume]
        filled = sum(gib(folder["sizeLimit"]) for folder in folders)
        assert filled + 0.5 <= gib(resources["limits"]["ephemeral-storage"])
        assert gib(resources["requests"]["ephemeral-storage"]) <= gib(
            resources["limits"]["ephemeral-storage"]
        )


# what the page adds to them


def examples_of_the_page():
    return [yaml.safe_load(block) for block in blocks(text_of("docs/kubernetes.md"), "yaml")]


def test_the_policy_of_the_page_is_a_policy_and_takes_the_place_of_the_one_that_is_there(sharing):
    (policy,) = [example for example in examples_of_the_page() if isinstance(example, dict)]
    kubernetes_validate.validate(policy, VERSIONS[-1], strict=True)
    there = find(sharing, "NetworkPolicy", "shared-state-egress")
    assert policy["metadata"]["name"] == there["metadata"]["name"]
    assert policy["spec"]["podSelector"] == there["spec"]["podSelector"]


def test_the_patch_of_the_page_mounts_the_authority_of_a_database(tmp_path):
    (patches,) = [example for example in examples_of_the_page() if isinstance(example, list)]
    copy = shutil.copytree(FOLDER, tmp_path / "kubernetes") / "overlays" / "several-servers"
    said = yaml.safe_load((copy / "kustomization.yaml").read_text())
    said["patches"] += patches
    (copy / "kustomization.yaml").write_text(yaml.safe_dump(said))
    deployment = find(build(copy), "Deployment", "flux-pulid")
    kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)
    pod = deployment["spec"]["template"]["spec"]
    assert pod["volumes"][-1]["secret"] == {"secretName": "database-ca", "defaultMode": 0o440}
    assert pod["containers"][0]["volumeMounts"][-1]["name"] == pod["volumes"][-1]["name"]
    assert f"sslrootcert={pod['containers'][0]['volumeMounts'][-1]['mountPath']}/ca.crt" in text_of(
        "docs/kubernetes.md"
    )


# secrets


def test_no_secret_is_in_the_repository(objects):
    assert "Secret" not in {item["kind"] for item in objects}
    for name in (name for name in project_files() if name.startswith("configs/kubernetes/")):
        assert not re.search(r"secretGenerator|stringData|\bhf_\w{8,}|\b[0-9a-f]{64}\b", text_of(name)), name


def test_the_keys_are_a_file_that_is_mounted_read_only_where_the_setting_says(objects):
    for template in templates(objects):
        (container,) = template["spec"]["containers"]
        path = environment_of(objects, container).get("FLUX_PULID_API_KEYS_FILE")
        if path is None:
            continue
        (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "api-keys"]
        (volume,) = [volume for volume in template["spec"]["volumes"] if volume["name"] == "api-keys"]
        assert (f"{mount['mountPath']}/keys", mount["readOnly"]) == (path, True)
        assert volume["secret"] == {"secretName": "api-keys", "defaultMode": 0o440}


def test_the_token_of_the_hub_reaches_the_fetch_alone_and_from_a_secret(built):
    having = [
        (item["kind"], variable)
        for objects in built.values()
        for item in objects
        for container in containers_in(item)
        for variable in container.get("env", [])
        if variable["name"] == "HF_TOKEN"
    ]
    assert {kind for kind, _ in having} == {"Job"}
    assert all("value" not in variable and "secretKeyRef" in variable["valueFrom"] for _, variable in having)


# what may go out


@pytest.fixture(scope="module")
def egress(built):
    return find(built["bases/model-files"], "NetworkPolicy", "egress")["spec"]


def may_reach(egress, address, port):
    """Whether a rule of addresses lets a connection to it out."""
    address = ipaddress.ip_address(address)
    for rule in egress["egress"]:
        blocks = [to["ipBlock"] for to in rule["to"] if "ipBlock" in to]
        for block in blocks if port in [entry["port"] for entry in rule["ports"]] else []:
            inside = address in ipaddress.ip_network(block["cidr"])
            if inside and not any(address in ipaddress.ip_network(part) for part in block["except"]):
                return True
    return False


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "151.101.1.140", "2606:4700:4700::1111", "2a00:1450:4001:830::200e"]
)
def test_public_addresses_are_reached_on_the_ports_of_the_web_alone(egress, address):
    assert may_reach(egress, address, 443)
    assert may_reach(egress, address, 80)
    assert not may_reach(egress, address, 22)
    assert not may_reach(egress, address, 53)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",  # metadata of most clouds
        "169.254.170.2",  # credentials of ECS
        "100.100.100.200",  # metadata of Alibaba
        "168.63.129.16",  # Azure's host
        "fd00:ec2::254",  # metadata of AWS over IPv6
        "10.96.0.1",  # often the API server
        "10.0.0.0",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",
        "127.0.0.1",
        "0.1.2.3",
        "192.0.0.192",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "2002:a00:1::",
        "2001:0:4136:e378::",
        "fe80::1",
        "fc00::1",
        "ff02::1",
    ],
)
def test_nothing_inside_is_reached(egress, address):
    assert not may_reach(egress, address, 80)
    assert not may_reach(egress, address, 443)


def test_every_hole_in_a_block_lies_in_it_and_in_no_other_hole(egress):
    blocks = [to["ipBlock"] for rule in egress["egress"] for to in rule["to"] if "ipBlock" in to]
    for block in blocks:
        holes = [ipaddress.ip_network(part) for part in block["except"]]
        assert all(hole.subnet_of(ipaddress.ip_network(block["cidr"])) for hole in holes)
        assert not any(a != b and a.overlaps(b) for a in holes for b in holes)


def test_names_are_asked_of_the_clusters_dns_alone(egress):
    (rule,) = [rule for rule in egress["egress"] if 53 in [entry["port"] for entry in rule["ports"]]]
    assert {(entry["protocol"], entry["port"]) for entry in rule["ports"]} == {("UDP", 53), ("TCP", 53)}
    (to,) = rule["to"]
    assert to["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
    assert to["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}


def test_the_policy_holds_for_every_pod_of_the_namespace(egress):
    assert egress["podSelector"] == {}
    assert egress["policyTypes"] == ["Egress"]
    assert len(egress["egress"]) == 2


# Ray


@pytest.fixture(scope="module")
def ray(built):
    return find(built["overlays/kuberay"], "RayService", "flux-pulid")["spec"]


def test_the_ray_service_has_only_fields_that_kuberay_knows(ray):
    cluster = ray["rayClusterConfig"]
    assert set(ray) == RAY_SERVICE
    assert set(cluster) == RAY_CLUSTER
    assert set(cluster["headGroupSpec"]) == HEAD_GROUP
    assert all(set(group) == WORKER_GROUP for group in cluster["workerGroupSpecs"])
    assert all(
        isinstance(value, str)
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
        for value in group["rayStartParams"].values()
    )


def test_the_version_of_ray_is_the_pinned_one(ray):
    assert f"\nray=={ray['rayClusterConfig']['rayVersion']}\n" in text_of("configs/constraints.txt")


def test_ray_serves_one_application_at_the_root(ray):
    said = yaml.safe_load(ray["serveConfigV2"])
    (application,) = said["applications"]
    arguments = application.pop("args")
    assert application == {
        "name": "flux-pulid",
        "import_path": "server.ray_serve:build_app",
        "route_prefix": "/",
    }
    assert said["http_options"]["port"] == 8000
    (group,) = ray["rayClusterConfig"]["workerGroupSpecs"]
    assert arguments["min_engines"] == arguments["max_engines"] == group["replicas"]
    assert arguments["settings"].keys() <= Settings.model_fields.keys()


def test_each_worker_of_ray_is_told_of_the_gpus_that_it_has(ray):
    (group,) = ray["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(group["rayStartParams"]["num-gpus"]) == 1
    assert ray["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"


def test_a_drain_may_take_one_worker_at_a_time(built, ray):
    (group,) = ray["rayClusterConfig"]["workerGroupSpecs"]
    budget = find(built["overlays/kuberay"], "PodDisruptionBudget", "workers")["spec"]
    assert budget["minAvailable"] == group["replicas"] - 1
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_into_the_dashboard_of_ray_comes_the_operator_alone(built):
    rules = find(built["overlays/kuberay"], "NetworkPolicy", "ray-ingress")["spec"]["ingress"]
    open_to_all = [rule for rule in rules if "from" not in rule]
    assert open_to_all == [{"ports": [{"protocol": "TCP", "port": 8000}]}]
    (dashboard,) = [rule for rule in rules if "from" in rule and "ports" in rule]
    assert dashboard["ports"] == [{"protocol": "TCP", "port": 8265}]
    (caller,) = dashboard["from"]
    assert caller["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}
