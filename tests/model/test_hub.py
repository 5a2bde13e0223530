"""A folder goes to a Hub with all of its bytes, or one line says what the Hub refused."""

from __future__ import annotations

import re
import sys

import pytest

from rlef_jax.errors import ConfigError, RunError
from rlef_jax.model.hub import HubRepository
from tests.helpers.hub_stub import TOKEN, hub


@pytest.fixture
def at(monkeypatch, tmp_path):
    """Sends this process to a Hub; what the machine's user has of it is not looked at."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def send(server, token=TOKEN, xet=True):
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
        monkeypatch.setenv("HF_ENDPOINT", server if isinstance(server, str) else server.url)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
            monkeypatch.delenv(name, raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)

    return send


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "exported"
    path.mkdir()
    (path / "README.md").write_text("---\ntags:\n- rlef\n---\n")
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 300)
    return path


@pytest.mark.parametrize("xet, large", [(False, ".safetensors"), (True, "")])
def test_a_folder_is_pushed_whole(xet, large, at, folder):
    with hub(large=large) as server:
        at(server, xet=xet)
        address = HubRepository("me/model").upload(folder, "of a run")
    assert address == f"{server.url}/me/model/commit/1"
    assert server.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(server.objects) == (1 if large else 0)
    [asked] = server.created
    assert (asked["organization"], asked["name"], asked["visibility"]) == ("me", "model", "private")
    assert server.messages == ["of a run"]


def test_it_is_public_where_that_is_asked_for(at):
    with hub() as server:
        at(server)
        HubRepository("me/model", public=True)
    assert server.created[0]["visibility"] == "public"


def test_what_is_refused_before_anything_is_written_is_one_line(at, monkeypatch):
    with hub({"/repos/create": (403, "You have\nno right to create a model")}) as server:
        for name, token, message in (
            ("model", TOKEN, "--push: 'model' is not OWNER/NAME$"),
            ("me/model", "", "--push: no token of the Hub: set HF_TOKEN or run `hf auth login`; it must be one"),
            ("me/model", TOKEN, f"--push: {server.url} doesn't let me/model be made: 403: .*no right.*may the token"),
        ):
            at(server, token)
            with pytest.raises(ConfigError, match=message) as caught:
                HubRepository(name)
            assert "\n" not in str(caught.value)
    with hub() as server:
        at(server, "hf_wrong")
        with pytest.raises(ConfigError, match=r"be made: 401: .*\(is the token right\?\)"):
            HubRepository("me/model")
    at(server)  # it has ended
    with pytest.raises(ConfigError, match=re.escape(f"{server.url} doesn't let me/model be made: ")):
        HubRepository("me/model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"needs the package huggingface_hub: pip install 'rlef-jax\[hub\]'"):
        HubRepository("me/model")


def test_a_push_that_fails_says_how_to_go_on(at, folder):
    with hub({"/commit/": (403, "Forbidden: write access needed")}) as server:
        at(server, xet=False)
        repository = HubRepository("me/model")
        with pytest.raises(
            RunError, match=r"is written, but was not pushed to me/model on .*: 403: .*write acc"
        ) as caught:
            repository.upload(folder, "of a run")
    assert str(caught.value).endswith(f"to try again: hf upload me/model {folder}") and "\n" not in str(caught.value)
