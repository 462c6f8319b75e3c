"""Finished pictures by their links: open to who knows the link, and to nobody else."""

import httpx
import pytest

ALICE = {"x-api-key": "alice-key"}


@pytest.fixture(scope="module")
def result(keyed_server):
    return keyed_server.finished(ALICE, num_outputs=2, output_format="jpg")


def get(url, method="GET", **headers):
    return httpx.request(method, url, headers=headers, trust_env=False)


def test_a_link_needs_no_key_and_tells_what_it_is(result):
    response = get(result["output"][0])
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/jpeg"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-disposition"] == 'inline; filename="0.jpg"'
    assert response.headers["cache-control"].startswith("private")
    assert len(response.content) == result["images"][0]["file_size"]


def test_head_tells_the_same_without_the_picture(result):
    head, whole = get(result["output"][1], "HEAD"), get(result["output"][1])
    assert head.status_code == 200
    assert head.content == b""
    for name in ("content-type", "content-length", "content-disposition"):
        assert head.headers[name] == whole.headers[name]


def test_the_link_is_not_the_request_id(result):
    assert all(result["request_id"] not in url for url in result["output"])


@pytest.mark.parametrize(
    "name",
    [
        *("", "/", "/2.jpg", "/0.png", "/0.webp", "/0", "/.jpg", "/00.jpg", "/-1.jpg", "/0.jpg%00"),
        *("/%2e%2e/0.jpg", "/..%2f0.jpg", "/0.jpg/", "/%2fetc%2fpasswd", "/0.JPG"),
    ],
)
def test_beside_the_pictures_there_is_nothing(result, name):
    folder = result["output"][0].rpartition("/")[0]
    response = get(folder + name)
    if name == "/0.jpg/":  # a slash at the end means the address without it
        assert response.status_code == 200
    else:
        assert response.status_code == 404
        assert set(response.json()) == {"error", "request_id"}


@pytest.mark.parametrize("media_id", ["0" * 32, "..", "%2e%2e", "x" * 300, "media", "*", "%00", "é"])
def test_an_unknown_folder_is_404(keyed_server, media_id):
    assert get(f"{keyed_server.url}/outputs/{media_id}/0.jpg").status_code == 404


def test_the_request_id_is_no_link(keyed_server, result):
    assert get(f"{keyed_server.url}/outputs/{result['request_id']}/0.jpg").status_code == 404


def test_pictures_of_v1_have_links_too(keyed_server):
    url = keyed_server.paint(headers=ALICE, base64=True).json()["output"][0]
    assert get(url).status_code == 200


def test_a_picture_whose_file_is_gone_is_404(server):
    url = server.finished()["output"]
    media_id = url.split("/")[-2]
    (server.data_dir / "media" / media_id / "0.webp").unlink()
    assert get(url).status_code == 404
