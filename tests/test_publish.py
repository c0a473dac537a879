"""What would go to a hub is said first; the token comes from the environment and is seen nowhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import handmade

SECRET = "hf_" + "q7" * 17


class Hub:
    """Stands in for huggingface_hub.HfApi and remembers what it was asked."""

    calls: list = []
    broken = False

    def __init__(self, token: str) -> None:
        self.token = token

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        if Hub.broken:
            raise RuntimeError(f"401 for token {self.token}")
        Hub.calls.append((name, private, self.token))
        return f"https://hub/{name}"

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        Hub.calls.append((repo_id, {file.name: file.stat().st_size for file in Path(folder_path).iterdir()}))


@pytest.fixture(scope="module")
def run(chain, tmp_path_factory):
    directory = tmp_path_factory.mktemp("published") / "run"
    flags = ["--valid_rows", 8, "--trainer.max_steps", 2, "--trainer.eval_steps", 2, "--samples", 0]
    handmade.call("train.sft", *chain.flags(), *flags, "--output_dir", directory)
    return directory


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr(Hub, "broken", False)
    return Hub


def test_a_dry_run_says_everything_and_sends_nothing(run, hub):
    model = run / "final"
    flags = ["train.publish", "--model", model, "--target", "me/toy"]
    done = handmade.run(*flags, HF_TOKEN=SECRET)
    assert done.returncode == 0 and hub.calls == []
    for name in ("model.safetensors", "config.json", "sid_vocab.json", "tokenizer.json", "README.md"):
        assert name in done.stdout
    assert "stay here: COMPLETE.json" in done.stdout and "me/toy (private); HF_TOKEN is set" in done.stdout
    assert "best_ndcg@10" in done.stdout and "max_steps 2" in done.stdout, "the card is shown"
    assert SECRET not in done.stdout + done.stderr
    assert str(run.parent) not in done.stdout.split("---", 1)[1], "a card names no path of this machine"
    assert "HF_TOKEN is not set" in handmade.run(*flags, HF_TOKEN="").stdout


def test_an_upload_sends_the_model_and_never_shows_the_token(run, hub):
    flags = ["train.publish", "--model", run / "final", "--target", "me/toy", "--dry_run", "false"]
    flags += ["--private", "false", "--license", "apache-2.0"]
    done = handmade.run(*flags, HF_TOKEN=SECRET, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    assert hub.calls[0] == ("me/toy", False, SECRET) and "https://hub/me/toy" in done.stdout
    sent = hub.calls[1][1]
    assert sent["model.safetensors"] == (run / "final/model.safetensors").stat().st_size
    assert {"README.md", "tokenizer.json", "sid_vocab.json"} <= set(sent) and "COMPLETE.json" not in sent
    hub.broken = True
    refused = handmade.run(*flags, HF_TOKEN=SECRET, HF_HUB_OFFLINE="0")
    assert refused.returncode == 5 and "401 for token (token)" in refused.stderr
    assert SECRET not in done.stdout + done.stderr + refused.stdout + refused.stderr
    nobody = handmade.run(*flags, HF_TOKEN="", HF_HUB_OFFLINE="0")
    assert nobody.returncode == 2 and "HF_TOKEN is not set" in nobody.stderr
    offline = handmade.run(*flags, HF_TOKEN=SECRET, HF_HUB_OFFLINE="1")
    assert offline.returncode == 3 and "HF_HUB_OFFLINE" in offline.stderr


def test_checkpoints_of_a_trainer_go_without_its_own_files(run, hub, tmp_path):
    checkpoint = run / "checkpoint-2"
    done = handmade.run("train.publish", "--model", checkpoint, "--target", "me/toy")
    assert done.returncode == 0 and "optimizer.pt" in done.stdout.split("stay here: ")[1].splitlines()[0]
    bare = shutil.copytree(checkpoint, tmp_path / "bare")
    (bare / "COMPLETE.json").unlink()
    done = handmade.run("train.publish", "--model", bare, "--target", "me/toy")
    assert "Nothing is recorded of how this model was made" in done.stdout, "a directory without manifest"
    (bare / "model.safetensors").unlink()
    assert "no weights" in handmade.refuse("train.publish", "--model", bare, "--target", "me/toy")
    assert "owner/name" in handmade.refuse("train.publish", "--model", bare, "--target", "toy")
    damaged = shutil.copytree(checkpoint, tmp_path / "damaged")
    (damaged / "config.json").write_text("{}")
    assert "is damaged" in handmade.refuse("train.publish", "--model", damaged, "--target", "me/toy")
