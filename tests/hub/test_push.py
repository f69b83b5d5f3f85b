from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest
import yaml
from commands import Covrl
from fake_hub import TOKEN, Hub, serve

import covrl as library
from covrl.config import RunConfig, check, override, read_toml
from covrl.errors import UserError
from covrl.hub.card import card, problems_counted, step_of_model
from covrl.hub.push import contents, push
from covrl.models.model import SHIPPED
from covrl.statistics import wilson

REPO = "someone/small-digits"
SMALL = [
    "training.steps=2",
    "evaluation.problems=4",
    "training.problems_per_step=2",
    "evaluation.every=1",
    "checkpoint.every=1",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "digits"
    table = override(read_toml(SHIPPED / "quickstart.toml"), SMALL)
    library.train(check(RunConfig, table), out=folder)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "digits"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The fake hub, to which huggingface_hub talks in this process."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_XET", True)
    with serve() as served:
        monkeypatch.setattr(hub_constants, "ENDPOINT", served.address)
        yield served


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub_constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))


def front(text: str) -> dict[str, object]:
    return yaml.safe_load(text.split("---\n")[1])


def test_push_puts_model_card_and_report_in_one_commit(hub: Hub, run: Path, covrl: Covrl) -> None:
    found = covrl("push", str(run), REPO)
    assert found.code == 0, found.err
    assert found.out == f"{hub.address}/{REPO}\n"
    assert hub.commits == ["covrl push digits"]
    assert hub.private == {REPO: True}
    files = hub.repos[REPO]
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert files[name] == (run / "best" / name).read_bytes()
    assert {"README.md", "report.html", "config.toml"} <= files.keys()
    assert "manifest.json" not in files
    assert b"<!doctype html>" in files["report.html"].lower()
    assert read_toml(run / "config.toml") == read_toml_bytes(files["config.toml"])


def read_toml_bytes(content: bytes) -> dict[str, object]:
    import tomllib

    return tomllib.loads(content.decode())


def test_a_second_push_is_a_second_commit(hub: Hub, run: Path) -> None:
    push(run, REPO, private=False)
    push(run, REPO)
    assert len(hub.commits) == 2
    assert hub.private == {REPO: False}, "as visible as it was"


def test_a_process_of_its_own_talks_to_the_endpoint_of_the_environment(run: Path) -> None:
    with serve() as served:
        environment = os.environ | {"HF_ENDPOINT": served.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        found = subprocess.run(
            [sys.executable, "-m", "covrl", "push", str(run), REPO, "--public"],
            env=environment | {"HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert (found.returncode, found.stdout) == (0, f"{served.address}/{REPO}\n"), found.stderr
        assert served.private == {REPO: False}


def test_the_card_says_what_was_trained(run: Path) -> None:
    text = contents(run, REPO)["README.md"].decode()  # ty: ignore[unresolved-attribute]
    head = front(text)
    assert head["license"] == "apache-2.0"
    assert head["library_name"] == "transformers"
    assert "covrl" in head["tags"]  # ty: ignore[unsupported-operator]
    step = step_of_model(run / "best")
    assert f"after step {step} of 2" in text
    assert "the method `covrl`" in text
    assert "Trained on `digits:train`" in text
    assert "covrl train --config config.toml" in text
    row = next(line for line in text.splitlines() if line.startswith("| `algorithm.beta`"))
    assert re.fullmatch(r"\| `algorithm.beta` \| `[\d.]+` \| [A-Z-]+.* \|", row), row
    assert "`apache-2.0`, which holds for these weights too" in text


def test_figures_have_the_interval_of_their_problems(run: Path) -> None:
    assert problems_counted(run) == 4
    lines = (run / "metrics.jsonl").read_text().splitlines()
    changed = [line.replace('"eval/accuracy": 0.0', '"eval/accuracy": 0.25') for line in lines]
    (run / "metrics.jsonl").write_text("\n".join(changed) + "\n")
    text = contents(run, REPO)["README.md"].decode()  # ty: ignore[unresolved-attribute]
    row = next(line for line in text.splitlines() if line.startswith("| held-out accuracy, greedy"))
    low, high = wilson(0.25, 4)
    assert f"25.0\xa0% [{100 * low:.1f}\xa0%, {100 * high:.1f}\xa0%]" in row
    assert "chosen as the best on these same problems" in text


def test_without_held_out_figures_the_card_says_so_and_shows_the_training_reward(run: Path) -> None:
    file = run / "metrics.jsonl"
    file.write_text(re.sub(r'"eval/[^"]*": [^,}]*(, )?', "", file.read_text()).replace(", }", "}"))
    text = contents(run, REPO)["README.md"].decode()  # ty: ignore[unresolved-attribute]
    assert "Nothing was measured on held-out problems." in text
    assert "| | first step | this model |" in text
    assert "held-out problems (" not in text
    assert any(line.startswith("| reward of prior traces") for line in text.splitlines())


def test_a_base_of_the_hub_is_named_with_its_licence(hub: Hub, run: Path) -> None:
    hub.licenses["maker/base"] = "mit"
    file = run / "config.toml"
    file.write_text(file.read_text().replace('path = "covrl:digits"', 'path = "maker/base"'))
    push(run, REPO)
    head = front(hub.repos[REPO]["README.md"].decode())
    assert (head["license"], head["base_model"]) == ("mit", "maker/base")
    hub.licenses.clear()
    push(run, REPO)
    text = hub.repos[REPO]["README.md"].decode()
    assert "license" not in front(text)
    assert "The licence of the base could not be read" in text
    push(run, REPO, license="cc-by-4.0")
    assert front(hub.repos[REPO]["README.md"].decode())["license"] == "cc-by-4.0"


def test_a_card_is_text_whatever_the_settings_hold(run: Path) -> None:
    file = run / "config.toml"
    nasty = r"path = \"x|y` <script>\n---\nlicense: mit\"".replace('\\"', '"')
    file.write_text(file.read_text().replace('path = "covrl:digits"', nasty))
    text = contents(run, REPO)["README.md"].decode()  # ty: ignore[unresolved-attribute]
    assert "license" not in front(text)
    row = next(line for line in text.splitlines() if line.startswith("| `model.path`"))
    assert row.replace("\\|", "").count("|") == 4
    assert "\nlicense: mit" not in text


@pytest.mark.parametrize("repo", ["alone", "a/b/c", "some one/x", "../x", "a/-b", "", "a/b--c"])
def test_a_wrong_name_is_one_line(hub: Hub, run: Path, covrl: Covrl, repo: str) -> None:
    found = covrl("push", str(run), "--", repo)
    assert (found.code, found.out) == (2, "")
    assert found.err == f"covrl: push: {repo!r} is no repository: expected OWNER/NAME of letters, digits, -, _ and .\n"
    assert hub.asked == []


def test_without_a_token_it_is_one_line(no_token: None, run: Path, covrl: Covrl) -> None:
    found = covrl("push", str(run), REPO)
    assert (found.code, found.out) == (2, "")
    assert re.fullmatch("covrl: push: no token of the Hugging Face hub: set HF_TOKEN .*\n", found.err)


def test_without_a_network_it_is_one_line(hub: Hub, run: Path, covrl: Covrl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:9")
    found = covrl("push", str(run), REPO)
    assert (found.code, found.out) == (2, "")
    assert re.fullmatch(f"covrl: push: {REPO}: not pushed, as the hub cannot be reached or refuses: .*\n", found.err)


@pytest.mark.parametrize("where", ["repos/create", "/preupload/", "/commit/"])
def test_a_refusal_is_one_line_without_the_token(hub: Hub, run: Path, covrl: Covrl, where: str) -> None:
    hub.refuse[where] = (403, f"odd: Bearer {TOKEN}")
    found = covrl("push", str(run), REPO)
    assert (found.code, found.out) == (2, "")
    assert found.err.splitlines()[-1].startswith(f"covrl: push: {REPO}: the hub refuses (HTTP 403)")
    hub.refuse[where] = (400, f"odd: Bearer {TOKEN}")
    found = covrl("push", str(run), REPO)
    assert found.code == 2
    assert TOKEN not in found.err


def test_the_token_is_in_nothing_that_goes_up(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither where it is in the environment nor where it is in huggingface_hub's own file."""
    file = run / "config.toml"
    file.write_text(file.read_text().replace('path = "covrl:digits"', f'path = "x{TOKEN}x"'))
    push(run, REPO)
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr(hub_constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    push(run, "someone/again")
    for files in hub.repos.values():
        assert all(TOKEN.encode() not in content for content in files.values())


@pytest.mark.parametrize("name", ["none", "empty"])
def test_a_folder_without_a_run_is_one_line(hub: Hub, tmp_path: Path, covrl: Covrl, name: str) -> None:
    (tmp_path / "empty").mkdir()
    found = covrl("push", str(tmp_path / name), REPO)
    assert (found.code, found.out) == (2, "")
    assert found.err == f"covrl: {tmp_path / name}: no run is in this folder (it has no config.toml)\n"


def test_the_setting_pushes_at_the_end(hub: Hub, tmp_path: Path, covrl: Covrl) -> None:
    asked = [part for each in SMALL for part in ("--set", each)]
    out = str(tmp_path / "run")
    command = ("train", "--config", str(SHIPPED / "quickstart.toml"), *asked, "--out", out, "--set", f"hub.push={REPO}")
    found = covrl(*command)
    assert found.code == 0, found.err
    assert hub.repos[REPO]["model.safetensors"] == (tmp_path / "run/best/model.safetensors").read_bytes()


def test_a_push_that_fails_at_the_end_leaves_the_run_whole(hub: Hub, tmp_path: Path, covrl: Covrl) -> None:
    hub.refuse["repos/create"] = (403, "no")
    asked = [part for each in SMALL for part in ("--set", each)]
    out = tmp_path / "run"
    found = covrl(
        "train", "--config", str(SHIPPED / "quickstart.toml"), *asked, "--out", str(out), "--set", f"hub.push={REPO}"
    )
    assert found.code == 2
    assert found.err.splitlines()[-1].endswith(f"; the run itself is done: covrl push {out} {REPO}")
    assert (out / "report.html").is_file()
    assert (out / "checkpoints/step-000002/model/model.safetensors").is_file()


def test_without_a_token_nothing_is_trained(no_token: None, tmp_path: Path) -> None:
    table = override(read_toml(SHIPPED / "quickstart.toml"), [*SMALL, f"hub.push={REPO}"])
    with pytest.raises(UserError, match=r"^hub\.push: no token"):
        library.train(check(RunConfig, table), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_card_is_made_from_the_folder_alone(run: Path, tmp_path: Path) -> None:
    """A run without held-out figures, moved elsewhere, has a card that says so."""
    from covrl.hub.card import Pushed

    shutil.rmtree(run / "best")
    (run / "metrics.jsonl").write_text('{"step": 1, "metrics": {}, "warnings": []}\n')
    model = run / "checkpoints/step-000002/model"
    text = card(Pushed(run, model, step_of_model(model), "", ""), REPO)
    assert "after step 2 of 2" in text
    assert "Nothing was measured on held-out problems." in text
