"""Weights by name: local files, the hub's real client against a server that answers as the hub does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models_vit import BACKBONES
from tests import hub_server
from tests.small_disk import small_disk  # noqa: F401 (fixture)
from util.core.errors import InputError
from util.weights.finding import find_weights, sha256

ROOT = Path(__file__).parents[2]
HUB_FILES = {"RETFound_x": ("YukunZhou/RETFound_x", "RETFound_x.pth")}
CODE = """
import sys
from util.core.errors import InputError
from util.weights.finding import find_weights
try:
    print("PATH", find_weights(sys.argv[1], "weights", {"RETFound_x": ("YukunZhou/RETFound_x", "RETFound_x.pth")}, "ask"))
except InputError as error:
    print("ERROR", error)
"""


@pytest.fixture
def hub():
    with hub_server.serving() as (hub, address):
        hub.address = address
        yield hub


def ask(name, hub, home, **more):
    """find_weights in a process of its own, since the client reads HF_ENDPOINT when it is imported."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "PYTHONPATH": str(ROOT),
                    "HF_HUB_DISABLE_XET": "1",
                    "HF_TOKEN": "hf_secret_token_of_the_test", **more}
    run = subprocess.run([sys.executable, "-c", CODE, name], capture_output=True, text=True, env=environment,
                         cwd=home, timeout=170)
    assert "hf_secret" not in run.stdout + run.stderr
    assert run.stdout.strip(), run.stderr
    last = run.stdout.strip().splitlines()[-1]
    return last.split(" ", 1)


def files_asked(hub):
    """The requests for files; the client may ask the hub other things about itself."""
    return [request for request in hub.requests if "/resolve/" in request[1]]


def test_the_tables_names_of_other_hubs_are_found(hub, tmp_path):
    """Names as README.md gives them, of repositories that are not RETFound's."""
    names = [name for row in BACKBONES for name in row.weights if name.startswith("hf:")]
    assert names == ["hf:yyyyk/UrFound/urfound_mm.pth"]
    for name in names:
        kind, path = ask(name, hub, tmp_path)
        assert kind == "PATH" and Path(path).read_bytes() == hub_server.CONTENT
        owner, repository, file = name.removeprefix("hf:").split("/")
        assert ("GET", f"/{owner}/{repository}/resolve/main/{file}") in files_asked(hub)


def test_found_then_offline(hub, tmp_path):
    kind, path = ask("RETFound_x", hub, tmp_path)
    assert kind == "PATH", path
    assert Path(path).read_bytes() == hub_server.CONTENT
    assert files_asked(hub) == [("HEAD", "/YukunZhou/RETFound_x/resolve/main/RETFound_x.pth"),
                                ("GET", "/YukunZhou/RETFound_x/resolve/main/RETFound_x.pth")]
    assert "Bearer hf_secret_token_of_the_test" in hub.tokens
    hub.answer, asked = 503, len(files_asked(hub))
    assert ask("RETFound_x", hub, tmp_path) == ["PATH", path]
    assert ask("RETFound_x.pth", hub, tmp_path, HF_HUB_OFFLINE="1") == ["PATH", path]
    assert len(files_asked(hub)) == asked  # the cache answers without a word to the hub


def test_any_file_of_the_hub(hub, tmp_path):
    kind, path = ask("hf:someone/some-model/sub/w.pth", hub, tmp_path)
    assert (kind, Path(path).name) == ("PATH", "w.pth")
    assert files_asked(hub)[0][1] == "/someone/some-model/resolve/main/sub/w.pth"
    # timm's repositories have one file of weights each
    kind, path = ask("hf:timm/resnet18.a1_in1k", hub, tmp_path)
    assert (kind, Path(path).name) == ("PATH", "model.safetensors")
    assert files_asked(hub)[-1][1] == "/timm/resnet18.a1_in1k/resolve/main/model.safetensors"


@pytest.mark.parametrize("status, code, says", [
    (401, "GatedRepo", "is gated: ask for access on huggingface.co/YukunZhou/RETFound_x, then log in with "
                       "`hf auth login`"),
    (403, "GatedRepo", "is gated: ask for access"),
    (401, "RepoNotFound", "the hub refuses (401): check the name"),
    (401, None, "the hub refuses (401)"),
    (404, "EntryNotFound", "the hub has no such file"),
    (404, "RepoNotFound", "check the name"),
])
def test_refused(hub, tmp_path, status, code, says):
    hub.answer, hub.error_code = status, code
    kind, message = ask("RETFound_x", hub, tmp_path)
    assert kind == "ERROR" and says in message
    assert "\n" not in message


def test_forbidden_without_a_reason(hub, tmp_path):
    hub.answer = 403
    kind, message = ask("RETFound_x", hub, tmp_path)
    assert kind == "ERROR" and "pass its path with --finetune" in message


def test_no_network(tmp_path):
    class Nobody:
        address = "http://127.0.0.1:9"  # the discard port: nobody listens

    kind, message = ask("RETFound_x", Nobody, tmp_path)
    assert kind == "ERROR" and "can't be reached" in message and "HF_ENDPOINT" in message


def test_a_full_disk_then_room(hub, small_disk):  # noqa: F811
    there = small_disk(4)
    there.fill()
    kind, message = ask("RETFound_x", hub, there.path)
    assert (
        kind == "ERROR"
        and "can't be stored in the hub's cache (No space left on device): make room" in message
    ), message
    there.mend(there.path)
    kind, path = ask("RETFound_x", hub, there.path)
    assert kind == "PATH" and Path(path).read_bytes() == hub_server.CONTENT


def test_cut_off_in_the_middle_then_whole(hub, tmp_path):
    hub.answer = "cut"
    kind, message = ask("RETFound_x", hub, tmp_path)
    assert kind == "ERROR" and "start again" in message
    hub.answer = "found"
    kind, path = ask("RETFound_x", hub, tmp_path)
    assert kind == "PATH" and Path(path).read_bytes() == hub_server.CONTENT


def test_changed_on_the_way(hub, tmp_path):
    hub.answer = "changed"
    kind, message = ask("RETFound_x", hub, tmp_path)
    assert kind == "ERROR" and "arrived changed" in message
    hub.answer = "found"
    kind, path = ask("RETFound_x", hub, tmp_path)
    assert kind == "PATH" and Path(path).read_bytes() == hub_server.CONTENT


def test_a_silent_hub_is_given_up(hub, tmp_path):
    hub.answer = "silent"
    kind, message = ask("RETFound_x", hub, tmp_path, RETINA_HUB_SILENCE_S="3")
    assert kind == "ERROR" and "has sent nothing for 3 s" in message


def test_order_of_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "RETFound_x.pth").write_bytes(b"stored")
    assert find_weights("RETFound_x", "weights", HUB_FILES, "") == Path("weights/RETFound_x.pth")
    assert find_weights("RETFound_x.pth", "weights", HUB_FILES, "") == Path("weights/RETFound_x.pth")
    (tmp_path / "RETFound_x").write_bytes(b"here")
    assert find_weights("RETFound_x", "weights", HUB_FILES, "") == Path("RETFound_x")


def test_what_can_not_be_found(tmp_path):
    with pytest.raises(InputError, match=r"no such file here or in --weights_dir .*RETFound_x.*ask Meta"):
        find_weights("nothing.pth", str(tmp_path), HUB_FILES, "ask Meta")
    with pytest.raises(InputError, match="is a folder"):
        find_weights(str(tmp_path), "weights", HUB_FILES, "")
    with pytest.raises(InputError, match="hf:owner/repo/file"):
        find_weights("hf:owner/file", "weights", HUB_FILES, "")


def test_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # the standard's own example
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
