"""A command line to call, and a runner that makes up its records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msbench.benchmark.cli.main import cli
from msbench.benchmark.spec import RunSpec, resolve
from msbench.errors import MsbenchError
from msbench.leaderboard.record import Record
from msbench.leaderboard.store import Store

Call = Callable[..., Result]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which no table is wrapped."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def call() -> Call:
    """Calls the program in this process, as ``call("run", "--seed", "0")``."""

    def invoke(*args: str, **env: str) -> Result:
        return CliRunner().invoke(cli, args, env=env, prog_name="msbench")

    return invoke


@pytest.fixture
def refused(call: Call) -> Callable[..., str]:
    """Calls the program with something unusable: exit code 2, and one line on stderr, which it returns."""

    def invoke(*args: str, **env: str) -> str:
        result = call(*args, **env)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1, result.stderr
        return result.stderr

    return invoke


def made_up(spec: RunSpec, **changes: Any) -> Record:
    """A record that is done, of the run that ``spec`` asks for."""
    plan = resolve(spec)
    zero = {"mean": 0.0, "p95": 0.0, "max": 0.0}
    data: dict[str, Any] = {
        "protocol": plan.info.protocol,
        "run_id": plan.run_id,
        "status": "done",
        "spec": plan.info.model_dump(),
        "target": {"accuracy": 0.98, "digest": "ab" * 32, "num_classes": 10, "image_shape": (1, 8, 8)},
        "budget": {"limit": spec.budget, "spent": spec.budget, "stop": "budget spent"},
        "stolen": {
            "clone_accuracy": 0.912,
            "agreement": 0.918,
            "agreement_released": 0.918,
            "kl": 0.5,
            "l1": 0.2,
            "queries_to_half": 100,
            "queries_to_90": None,
            "area_under_curve": 0.6,
            "transfer": {"epsilon": 0.3, "images": 400, "fgsm": 0.1, "bim": 0.2, "pgd": 0.3},
        },
        "paid": {
            "defended_accuracy": 0.98,
            "defended_accuracy_before": 0.98,
            "argmax_changed": 0.0,
            "l1": zero,
            "l1_queries": zero,
            "nll": 0.1,
            "ece": 0.01,
            "auroc": 0.9,
            "shifted": {"images": 450, "undefended": 0.9, "defended": 0.9, "argmax_changed": 0.0, "l1": 0.0},
            "state_bytes": 0,
        },
        "curve": [],
        "diagnostics": None,
        "flags": [],
        "timing": {
            "created_utc": "2026-01-01T00:00:00Z",
            "wall": 1.0,
            "attack": 0.5,
            "evaluation": 0.5,
            "latency_ratio": {"1": 1.0, "256": 1.0},
            "resumed": 0,
            "peak_memory": None,
        },
        "env": {
            "msbench": "0",
            "python": "3",
            "torch": "2",
            "timm": "1",
            "platform": "Linux",
            "device": "cpu",
            "threads": 1,
            "compiled": False,
            "arithmetic": "0123456789ab",
            "commit": None,
            "dirty": None,
        },
        "error": None,
    }
    return Record.model_validate(data | changes)


def _failed(error: Exception) -> dict[str, Any]:
    trace = f"Traceback (most recent call last):\n{error!r}"
    told = {"type": type(error).__name__, "message": str(error), "traceback": trace}
    return {"status": "failed", "stolen": None, "paid": None, "target": None, "error": told}


@dataclass
class FakeRunner:
    """Stands in for `benchmark.runner.run_in_turns`: keeps what it was asked for, and saves made-up records."""

    calls: list[tuple[RunSpec, dict[str, Any]]] = field(default_factory=list)
    failing: dict[str, Exception] = field(default_factory=dict)
    """What happens to runs of these attacks: usage errors are their outcome, anything else ends in the record."""
    groups: list[int] = field(default_factory=list)
    """How many runs took turns, call by call."""

    def __call__(self, specs: Sequence[RunSpec], **options: Any) -> list[Record | MsbenchError]:
        self.groups.append(len(specs))
        return [self._run(spec, **options) for spec in specs]

    def _run(self, spec: RunSpec, *, store: Store, **options: Any) -> Record | MsbenchError:
        self.calls.append((spec, options))
        options["listener"].phase("attacking")
        error = self.failing.get(spec.attack)
        if isinstance(error, MsbenchError):
            return error
        record = made_up(spec, **(_failed(error) if error else {}))
        store.save(record)
        return record

    @property
    def specs(self) -> list[RunSpec]:
        """What was run, in order."""
        return [spec for spec, _ in self.calls]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRunner:
    """Replaces the runner."""
    runner = FakeRunner()
    monkeypatch.setattr("msbench.benchmark.runner.run_in_turns", runner)
    return runner
