"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from commands import Covrl, here
from hypothesis import settings
from proved import PROVING, prove_once
from worlds import Worlds

from covrl.rewards.isolation import fault

# No test asks the network: without this a model that is not there is looked for on the hub, again and again.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Known draws and no deadline, so that a red run is never chance or a busy machine; `make fuzz` looks for new draws.
settings.register_profile("known", derandomize=True, deadline=None)
settings.register_profile("fuzz", derandomize=False, print_blob=True, deadline=None)
settings.load_profile("known")


LONGEST = (
    "test_parallel.py",
    "test_step_methods.py",
    "test_checkpoint.py",
    "test_guards.py",
    "test_many_engines.py",
    "test_kills.py",
    "test_lora_parallel.py",
    "test_contract.py",
    "test_objectives_expected.py",
    "test_foreign_checkpoint.py",
    "test_group_expected.py",
    "test_learning.py",
)
"""The files that take longest come first, so that no worker begins one of them when the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture
def covrl(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Covrl:
    """Runs a command in the test's process and gives its exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: here(monkeypatch, capfd, *arguments)


@pytest.fixture(scope="session", autouse=True)
def proved_once() -> Iterator[None]:
    """The paths of a model are proved at its first build; most of a small run's build is that proof.

    A test that puts a fault where the proof should see it calls the proof itself.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in PROVING:
            patch.setattr(f"{module}.prove", prove_once)
        yield


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
    """Starts several processes as torchrun does, without its imports; one server for all files of a test worker."""
    served = Worlds()
    yield served
    served.close()


@pytest.fixture(scope="session")
def isolator() -> None:
    """For tests that run programs of the verifier ``code``: skips them where no isolator works, unless one must."""
    if fault() and not os.environ.get("COVRL_NEED_ISOLATOR"):  # set where one was installed for this
        pytest.skip(f"programs cannot be isolated here: {fault()}")
