"""No token and no password is printed, logged or saved: not by a start that works, and not by one that
fails."""

from pathlib import Path

import pytest

from tests import hub_server
from tests.bad_input.judge import files_of
from tests.bad_input.place import TRAINING, Kit, started
from tests.conftest import start_process, write_pictures
from util.core.secrets import plain_without_secrets, without_secrets

TOKEN, FILE_TOKEN, PASSWORD = "hf_secretOfTheEnvironment", "hf_secretOfTheFile", "hidden_password"
SECRETS = (TOKEN, FILE_TOKEN, PASSWORD)


def environment(home: Path, **more) -> dict[str, str]:
    (home / "hf").mkdir(exist_ok=True)
    (home / "hf/token").write_text(FILE_TOKEN)
    return {"HF_HOME": str(home / "hf"), "HF_TOKEN_PATH": str(home / "hf/token"), "HF_HUB_DISABLE_XET": "1",
            **more}


def assert_hidden(folder: Path, *texts: str) -> None:
    for secret in SECRETS:
        for text in texts:
            assert secret not in text, text[-2000:]
        for path in files_of(folder):
            if path.parent.name != "hf":
                assert secret.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("answer, mirror", [(403, "http://"), ("cut", f"http://user:{PASSWORD}@")])
def test_no_token_is_printed_or_saved(tmp_path, answer, mirror):
    """A token in the environment, another in the hub's file, a mirror with a password in its address; a
    download that fails."""
    write_pictures(tmp_path / "data", (2, 1, 1), ("dry", "wet"))
    with hub_server.serving() as (hub, address):
        hub.answer = answer
        run = start_process(
            *TRAINING,
            "--data_path",
            "data",
            "--task",
            "t",
            "--finetune",
            "hf:owner/repo/model.safetensors",
            folder=tmp_path,
            real=True,  # the hub's client reads its variables when it is imported
            **environment(tmp_path, HF_ENDPOINT=address.replace("http://", mirror), HF_TOKEN=TOKEN),
        )
        # something was sent: Bearer and the token, or Basic and the password
        assert hub.requests and hub.tokens != {""}
    assert run.returncode == 2 and "Traceback" not in run.stderr, run.stderr
    assert run.stderr.strip().splitlines()[-1].startswith("error: owner/repo/model.safetensors")
    assert_hidden(tmp_path, run.stdout, run.stderr)


def test_an_address_that_is_none(tmp_path):
    write_pictures(tmp_path / "data", (2, 1, 1), ("dry", "wet"))
    run = start_process(
        *TRAINING,
        "--data_path",
        "data",
        "--finetune",
        "hf:owner/repo/model.safetensors",
        folder=tmp_path,
        real=True,
        **environment(tmp_path, HF_ENDPOINT=f"ftp://user:{PASSWORD}@nowhere", HF_TOKEN=TOKEN),
    )
    assert run.returncode == 2 and "Traceback" not in run.stderr, run.stderr
    assert run.stderr.strip().splitlines()[-1].startswith("error: owner/repo/model.safetensors")
    assert_hidden(tmp_path, run.stdout, run.stderr)


def test_a_run_stores_none(tmp_path, monkeypatch):
    """A training with passwords among its flags: run.json, checkpoints, report, TensorBoard, log."""
    kit = Kit(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, value in environment(tmp_path, HF_TOKEN=TOKEN).items():
        monkeypatch.setenv(name, value)
    ended = started(
        "main_regression.py",
        [
            *TRAINING,
            "--csv_file",
            kit.csv,
            "--targets",
            "depth",
            "--finetune",
            "",
            "--head_depth",
            1,
            "--task",
            "t",
            "--optuna_storage",
            f"postgresql://user:{PASSWORD}@host/x",
        ],
    )
    assert ended.code == 0, ended.err
    assert (tmp_path / "output_dir/t/report.html").exists() and (
        tmp_path / "output_dir/t/checkpoint-last.pth"
    ).exists()
    assert "postgresql://***@host/x" in (tmp_path / "output_dir/t/run.json").read_text()
    assert_hidden(tmp_path, ended.out, ended.err)
    ended = started("main_finetune.py",
                    [*TRAINING, "--data_path", f"https://user:{PASSWORD}@host/{TOKEN}{FILE_TOKEN}"])
    assert ended.code == 2 and "https://***@host/******" in ended.err
    assert_hidden(tmp_path, ended.out, ended.err)


def test_what_is_hidden(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijk")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    assert without_secrets("see http://u:p@host/a@b and "
                           "hf_abcdefghijk.") == "see http://***@host/a@b and ***."
    assert without_secrets("user@host, https://host/a@b, 5 @ 3") == "user@host, https://host/a@b, 5 @ 3"
    assert plain_without_secrets({"a": ["x://u@h", 1, None], "b": "hf_abcdefghijk"}) == {
        "a": ["x://***@h", 1, None],
        "b": "***",
    }
    monkeypatch.setenv("HF_TOKEN", "short")
    assert without_secrets("a short text") == "a short text"
