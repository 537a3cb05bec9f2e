"""One thread a process, since two torch processes of two threads each fight over two cores; no user's settings."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start; read before torch is imported here

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from PIL import Image

torch.set_num_threads(1)
settings.register_profile("same", derandomize=True)  # a check of a change must not fail by an example's chance
settings.load_profile("same")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that all tests of the session share: a target is trained once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder that holds data sets which cannot be had offline; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("MSBENCH_DATA") or Path(__file__).parents[2] / "shared" / "datasets")
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set MSBENCH_DATA")
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into the checkout or into a user's folders, or sees the user's settings."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MSBENCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MSBENCH_HOME", str(home))


@pytest.fixture
def photographs(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a folder of images of one's own: two classes, and four images of each for training and for testing."""

    def make(name: str) -> Path:
        for split in ("train", "test"):
            for label, color in (("cat", (250, 0, 0)), ("dog", (0, 250, 0))):
                folder = tmp_path / name / split / label
                folder.mkdir(parents=True)
                for i in range(4):
                    Image.new("RGB", (8, 8), color).save(folder / f"{i}.png")
        return tmp_path / name

    return make
