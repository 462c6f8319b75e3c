"""What the Ray application makes of its arguments, and of refusals of Ray's proxies; without Ray."""

import asyncio
from pathlib import Path

import httpx
import pytest
import yaml
from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse

from server import ray_serve
from server.api.context import RequestContext
from server.metrics import Metrics
from server.ray_serve import OwnFolder, ProxyAnswers, RayArguments, device_options, engine_count, settings_of
from server.settings import Settings, SettingsError

CONFIGS = Path(__file__).parents[2] / "configs"
PROFILE_OF = {"ray-serve.yaml": "exact", "ray-tiny.yaml": "tiny"}
KUBERAY = CONFIGS / "kubernetes" / "bases" / "ray" / "ray-service.yaml"
SHARED = {"database_url": "postgresql://flux@db/flux", "media_url": "s3://pictures/flux"}


def arguments(settings=None, **more):
    return RayArguments(settings={"profile": "tiny", "auth": "none", **(settings or {})}, **more)


@pytest.mark.parametrize(("name", "profile"), PROFILE_OF.items())
def test_a_configuration_names_a_builder_and_arguments_that_it_takes(name, profile):
    config = yaml.safe_load((CONFIGS / name).read_text())
    (application,) = config["applications"]
    module, _, builder = application["import_path"].partition(":")
    assert module == ray_serve.__name__
    assert callable(getattr(ray_serve, builder))
    given = RayArguments(**application["args"])
    assert set(application["args"]) == set(RayArguments.model_fields)
    assert set(given.settings) <= set(Settings.model_fields)
    assert config["http_options"]["host"] == "127.0.0.1"
    open_to_all = given.model_copy(update={"settings": {**given.settings, "auth": "none"}})
    assert settings_of(open_to_all).profile == profile


def test_every_configuration_for_ray_is_tried():
    assert {path.name for path in CONFIGS.glob("ray-*.yaml")} == set(PROFILE_OF)


def test_the_tiny_configuration_needs_neither_keys_nor_a_gpu_and_fits_two_cores():
    (application,) = yaml.safe_load((CONFIGS / "ray-tiny.yaml").read_text())["applications"]
    given = RayArguments(**application["args"])
    engine = device_options(settings_of(given))
    readers = ray_serve.READER_CPUS * given.face_readers
    cpus = engine["num_cpus"] * given.max_engines + ray_serve.FRONT_END_CPUS * given.front_ends + readers
    assert engine["num_gpus"] == 0
    assert cpus <= 2


def test_kuberay_gives_the_builder_arguments_that_it_takes():
    service = yaml.safe_load(KUBERAY.read_text())["spec"]
    (application,) = yaml.safe_load(service["serveConfigV2"])["applications"]
    given = RayArguments(**application["args"])
    shared = given.model_copy(update={"settings": {**given.settings, "auth": "none", **SHARED}})
    assert settings_of(shared).profile == "exact"
    (group,) = service["rayClusterConfig"]["workerGroupSpecs"]
    assert engine_count(given) == {"num_replicas": group["replicas"]}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (arguments({"profil": "tiny"}), "profil"),
        (arguments({"devices": "cpu,cpu"}), "Leave it out"),
        (arguments({"profile": "auto"}), "Name the profile"),
        (arguments(front_ends=2), "DATABASE_URL"),
        (arguments(min_engines=3, max_engines=2), "min_engines is 3"),
        (arguments({"auth": "keys"}), "api_keys"),
        (RayArguments(settings={"profile": "tiny"}), r"^Ray's proxies .* no API keys"),
    ],
)
def test_what_does_not_go_together_is_refused_in_words(wrong, words):
    with pytest.raises(SettingsError, match=words):
        settings_of(wrong)


def test_several_front_ends_may_share_a_database():
    assert settings_of(arguments(SHARED, front_ends=2)).media_url == SHARED["media_url"]


def test_settings_come_from_the_environment_where_the_application_says_nothing(monkeypatch):
    monkeypatch.setenv("FLUX_PULID_MAX_QUEUED_JOBS", "5")
    monkeypatch.setenv("FLUX_PULID_DRAIN_S", "5")
    settings = settings_of(arguments({"drain_s": 7}))
    assert (settings.max_queued_jobs, settings.drain_s) == (5, 7)


def test_engines_have_a_gpu_where_their_profile_needs_one():
    assert device_options(Settings(profile="exact")) == {"num_cpus": 1, "num_gpus": 1}
    assert device_options(Settings(profile="tiny")) == {"num_cpus": 1, "num_gpus": 0}


def test_their_number_is_fixed_or_follows_what_waits():
    assert engine_count(arguments(min_engines=2, max_engines=2)) == {"num_replicas": 2}
    following = engine_count(arguments(min_engines=1, max_engines=4, jobs_per_engine=1.5))
    assert following["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": 1.5,
    }


def test_front_ends_of_one_machine_have_folders_of_their_own(tmp_path):
    settings = Settings(data_dir=tmp_path, **SHARED)
    one, two = OwnFolder(settings), OwnFolder(settings)
    assert {one.path.name, two.path.name} == {"front-end-0", "front-end-1"}
    one.close()
    again = OwnFolder(settings)
    assert again.path == one.path
    two.close()
    again.close()


class Proxy:
    """What stands inside the layer: a proxy that adds an id, over the app; or one that refuses."""

    def __init__(self, app, refuses=0):
        self.app, self.refuses = app, refuses

    async def __call__(self, scope, receive, send):
        async def told(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", b"of the proxy")]
            await send(message)

        refusal = PlainTextResponse("Internal Server Error", self.refuses)
        await (refusal if self.refuses else self.app)(scope, receive, told)


def answer_of(path="/", **how):
    """The answer of an app with our outermost layer behind such a proxy."""
    app = FastAPI()
    app.add_middleware(RequestContext, metrics=Metrics())

    @app.get("/")
    def root(status: int = 200):
        return JSONResponse({"says": "the app"}, status)

    async def ask():
        transport = httpx.ASGITransport(ProxyAnswers(Proxy(app, **how)))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.get(path)

    return asyncio.run(ask())


@pytest.mark.parametrize("status", [200, 404, 500, 503])
def test_what_the_app_answers_has_its_own_id_and_is_left_alone(status):
    answer = answer_of(f"/?status={status}")
    assert answer.json() == {"says": "the app"}
    assert answer.status_code == status
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize(("refused", "status"), [(429, 429), (500, 503), (503, 503), (404, 503)])
def test_a_refusal_of_the_proxy_is_told_as_the_server_tells_it(refused, status):
    answer = answer_of(refuses=refused)
    assert answer.status_code == status
    assert answer.headers["retry-after"] == "10"
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert "Try again" in answer.json()["error"]
