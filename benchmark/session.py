"""One attempt at a run: load, defend, attack under the budget, measure, record.

The harness owns the loop. It evaluates the clone at milestones, saves all state there, every ``MSBENCH_SAVE_SECONDS``
of attack (`SAVE_SECONDS` where that is not set), and when asked to stop, and turns every failure into a record.

The state holds no code: it is read back with ``weights_only=True``. A state that cannot be used (another target,
a damaged file) is set aside with a warning and the run starts over.
"""

import copy
import io
import math
import os
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.base import AttackContext, StepReport
from ..attacks.recovery.base import RecoveryContext
from ..defenses.base import DefenseContext
from ..defenses.deployment import Deployment
from ..defenses.rebuilt import Rebuilt, withheld
from ..errors import ContractViolation, Interrupted, StoreError, UsageError
from ..files import write_atomically
from ..leaderboard.contradictions import SPENT
from ..leaderboard.record import (
    BudgetInfo,
    CurvePoint,
    ErrorInfo,
    Record,
    TargetInfo,
    Timing,
)
from ..leaderboard.store import Store
from ..targets.architectures import build_clone
from ..targets.blackbox import BlackBox
from ..targets.datasets.base import Dataset, Images
from ..targets.target import Target
from ..targets.training import recipe_for
from ..targets.zoo import Loaded, load_target, parse_target
from .environment import environment, forget_peak_memory, peak_memory
from .evaluation import Evaluator
from .images import auxiliary, open_shaped, unrelated
from .listener import Listener
from .metrics import milestones
from .numerics import Compilation, compiles, numerics
from .reliability import Reliability
from .spec import Plan
from .traffic import Traffic, account_name

SAVE_SECONDS = 20.0
"""State is saved at least this often, in seconds of attack, unless ``MSBENCH_SAVE_SECONDS`` says otherwise."""
STATE_FORMAT = 5


Steps = Generator[None, None, Record]
"""A run that can be left after each step of its attack, and comes to its record in the end."""


@dataclass
class Tally:
    """What a run has so far, beside the components' own state; part of the saved state."""

    curve: list[dict[str, Any]] = field(default_factory=list)
    before: float | None = None
    stop_reason: str = ""
    seconds: dict[str, float] = field(default_factory=lambda: {"attack": 0.0, "evaluation": 0.0, "setup": 0.0})
    created: str = ""
    resumed: int = 0


class Session:
    """One attempt at a run, from loading the target to saving the record."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        device: torch.device,
        listener: Listener,
        stop: threading.Event,
        *,
        force: bool,
        compilation: Compilation,
    ) -> None:
        self.plan = plan
        self.store = store
        self.device = device
        self.compiled = compiles(compilation, device, plan.info.budget)
        self.listener = listener
        self.stop = stop
        self.state_path = store.state_path(plan.run_id, forced=force)
        self.save_seconds = _save_seconds()
        self.tally = Tally(created=datetime.now(UTC).isoformat(timespec="seconds"))
        self.loaded: Loaded | None = None
        self.accuracy: float | None = None
        self.box: BlackBox | None = None
        self.final: nn.Module | None = None
        self.auxiliary: list[str] = []

    def steps(self, data_dir: Path, download: bool) -> Steps:
        """The run, see `run`, step by step of its attack."""
        try:
            with self._clock("setup"):
                forget_peak_memory(self.device)
                self._prepare(data_dir, download)
                self._begin()
            yield from self._attack()
            record = self._measure()
        except UsageError:
            raise
        except Interrupted:
            self.store.save(self._record("interrupted"))
            raise
        except Exception as error:
            record = self._record("failed", error=_describe(error))
        self.store.save(record)
        if record.status == "done":
            self._discard_state()
        return record

    # ------------------------------------------------------------------------------------------ set up

    def _prepare(self, data_dir: Path, download: bool) -> None:
        request, info, pool = self.plan.request, self.plan.info, self.plan.pool
        loaded = load_target(
            request.target,
            seed=request.target_seed,
            checkpoint=request.checkpoint,
            data_dir=data_dir,
            download=download,
            device=self.device,
            listener=self.listener,
            stop=self.stop,
        )
        self.loaded = loaded
        target, dataset = loaded.target, loaded.dataset
        own = copy.deepcopy(target)  # the defense's, to do with as it likes: clean answers come from the other one
        open_images = partial(open_shaped, data_dir=data_dir, shape=target.image_shape, device=self.device)
        architecture = partial(build_clone, num_classes=target.num_classes, image_shape=target.image_shape)
        surrogate = parse_target(request.target).architecture
        data = partial(open_images, dataset, split="train", download=download)
        defense_context = partial(
            DefenseContext,
            num_classes=target.num_classes,
            image_shape=target.image_shape,
            device=self.device,
            new_surrogate=lambda seed: architecture(surrogate, seed=seed).to(self.device).eval(),
        )
        self.plan.defense.prepare(
            defense_context(
                seed=info.defense_seed,
                target=lambda: own,
                data=data,
                auxiliary=lambda name: open_images(self._given(dataset, name), split="train", download=download),
                recipe=recipe_for(dataset.label()),
            ).granted(self.plan.defense)
        )
        self.deployment = Deployment(target, self.plan.defense, own)
        test = dataset.load("test", data_dir=data_dir, download=download, device=self.device)
        outside = unrelated(dataset.pool, open_images)
        self.evaluator = Evaluator(self.deployment, dataset, test, outside, self.plan.run_id)
        self.accuracy = self.evaluator.accuracy
        self.reliability = self._questions(data)
        self.traffic = Traffic(self.deployment, self.reliability.attacker)
        self.box = BlackBox(
            self.traffic.answer,
            budget=info.budget,
            num_classes=target.num_classes,
            image_shape=target.image_shape,
            labels_only=self.plan.defense.traits.labels_only,
        )

        def build_own(seed: int) -> nn.Module:
            return architecture(info.clone, seed=seed)

        self.victim = self.plan.recovery.wrap(self.box)
        self.plan.recovery.prepare(
            RecoveryContext(
                device=self.device,
                seed=info.seed,
                build_clone=build_own,
                rebuild_defense=lambda seed: Rebuilt(
                    request.defense,
                    defense_context(seed=seed, target=withheld, data=withheld, auxiliary=withheld),
                ),
                clone=self.plan.attack.clone,
                clean=partial(_clean, target),
            ).granted(self.plan.recovery)
        )
        self.plan.attack.setup(
            self.victim,
            AttackContext(
                device=self.device,
                seed=info.seed,
                precision=torch.bfloat16 if info.precision == "bf16" else torch.float32,
                compiled=self.compiled,
                build_clone=lambda seed: self.plan.recovery.student(build_own(seed), seed),
                pool=open_images(pool, split="train", download=download) if pool else None,
            ),
        )

    def _given(self, dataset: Dataset, name: str) -> Dataset:
        """The auxiliary data set of that name, noted."""
        given = auxiliary(dataset, name)
        self.auxiliary.append(given.identity())
        return given

    def _questions(self, data: Callable[[], Images]) -> Reliability:
        """Those of this run: no defense can know its accounts and copies."""
        attacker, visitor, copies = (account_name(self.plan.run_id, who) for who in ("attack", "visitor", "copies"))
        return Reliability(
            self.deployment, self.evaluator.test, data, attacker=attacker, visitor=visitor, secret=int(copies, 16) >> 1
        )

    def _begin(self) -> None:
        """Continue from saved state; or look at the defense before the attack's first query."""
        self._load_state()
        if self.tally.before is None:
            self.tally.before = self.evaluator.defended_accuracy()
            self.reliability.begin()

    # ------------------------------------------------------------------------------------------ attack

    def _attack(self) -> Iterator[None]:
        box = self._box()
        self.listener.phase(f"{self.plan.attack} against {self.plan.defense}")
        due = [mark for mark in milestones(box.budget) if mark > box.spent]
        saved = shown = time.monotonic()
        while not self.tally.stop_reason:
            with self._clock("attack"), numerics(self.plan.info.precision, self.device):
                report = self.plan.attack.step()
            self._expect_all_charged()
            if time.monotonic() - shown > 0.25:
                shown = time.monotonic()
                with self._clock("attack"):  # it waits for what the attack has begun on a GPU
                    self._show(report)
            stopping = self.stop.is_set()  # asked once a step: what is raised below must have been saved
            if report.done:
                self.tally.stop_reason = self._why(report)
            if (due and box.spent >= due[0]) or report.done:
                due = [mark for mark in due if mark > box.spent]
                self._milestone(final=report.done)
                saved = self._save_state()
            elif stopping or time.monotonic() - saved > self.save_seconds:
                saved = self._save_state()
            if stopping and not self.tally.stop_reason:
                raise Interrupted(f"run {self.plan.run_id} stopped at {box.spent} queries; state saved")
            yield

    def _milestone(self, *, final: bool) -> None:
        queries = self._box().spent
        if queries == 0 or (self.tally.curve and self.tally.curve[-1]["queries"] == queries):
            return
        self._settle()
        # Only the last clone is the attack's own wish; some attacks train the others for the harness alone.
        clone = self._clone("attack" if final else "evaluation")
        self.final = clone if final else None
        with self._clock("evaluation"):
            point = self.evaluator.milestone(clone, queries)
            self.reliability.look(queries)
        self.tally.curve.append(point.model_dump())
        self.listener.milestone(point)

    def _clone(self, clock: str) -> nn.Module:
        """The clone as it stands, which some attacks train only now."""
        with self._clock(clock), numerics(self.plan.info.precision, self.device):
            clone = self.plan.attack.clone()
        self._expect_all_charged()
        return clone

    def _expect_all_charged(self) -> None:
        """Raise `ContractViolation` for an attack that was answered more than the black box counted, or less."""
        asked, spent = self.traffic.asked, self._box().spent
        if asked != spent:
            raise ContractViolation(
                f"attack {self.plan.attack} was answered {asked} images but charged {spent}: "
                "it tampered with the black box's count"
            )

    def _settle(self) -> None:
        """Judge what was queried and released since the last time; the host waits for the device here anyway."""
        with self._clock("attack"):
            self._box().settle()
            self.deployment.settle()

    def _why(self, report: StepReport) -> str:
        if self._box().spent == 0:
            raise ContractViolation(f"attack {self.plan.attack} ended without a single query: nothing can be measured")
        left = self._box().remaining
        if left == 0:
            return SPENT
        if self.victim.remaining == 0:
            per_image = self.plan.recovery.queries_per_image
            return f"{left} left, fewer than the {per_image} that one image costs under {self.plan.recovery}"
        return report.reason or "the attack ended without stating a reason"

    def _show(self, report: StepReport) -> None:
        losses = {name: float(value) for name, value in report.losses.items()}
        self.listener.progress(self._box().spent, self._box().budget, losses)

    # ----------------------------------------------------------------------------------------- measure

    def _measure(self) -> Record:
        self.listener.phase("measuring")
        clone = self.final or self._clone("attack")
        with self._clock("evaluation"):
            curve = self.evaluator.ended([CurvePoint(**point) for point in self.tally.curve], clone)
            self.tally.curve = [point.model_dump() for point in curve]
            own = self.plan.attack.diagnostics()
            stolen = self.evaluator.stolen(clone, curve, self.plan.info.seed)
            paid = self.evaluator.paid(self.traffic, self.tally.before or 0.0)
            sections = {
                "stolen": stolen,
                "paid": paid,
                "diagnostics": self.evaluator.diagnostics(self.traffic, own, self.auxiliary),
                "flags": self.reliability.flags(self.traffic, paid, curve, self.evaluator.accuracy),
            }
            latency = self.evaluator.latency_ratio()
        self._expect_all_charged()  # for diagnostics, and for what the clone may have asked while it was measured
        self._settle()
        return self._record("done", latency=latency, **sections)

    def _record(self, status: str, *, latency: dict[str, float] | None = None, **sections: Any) -> Record:
        info, tally = self.plan.info, self.tally
        return Record(
            protocol=info.protocol,
            run_id=self.plan.run_id,
            status=status,  # type: ignore[arg-type]
            spec=info,
            target=self._target_info(),
            budget=BudgetInfo(
                limit=info.budget, spent=self.box.spent if self.box else 0, stop=tally.stop_reason or status
            ),
            curve=[CurvePoint(**point) for point in tally.curve],
            timing=Timing(
                created_utc=tally.created,
                wall=round(sum(tally.seconds.values()), 3),
                attack=round(tally.seconds["attack"], 3),
                evaluation=round(tally.seconds["evaluation"], 3),
                latency_ratio=latency or {},
                resumed=tally.resumed,
                peak_memory=peak_memory(self.device),
            ),
            env=environment(self.device, compiled=self.compiled),
            **({"stolen": None, "paid": None, "diagnostics": None, "flags": [], "error": None} | sections),
        )

    def _target_info(self) -> TargetInfo | None:
        if self.loaded is None:
            return None
        return TargetInfo(
            # As measured here, like all else: on another machine rounding may turn an image over.
            accuracy=self.loaded.card.accuracy if self.accuracy is None else self.accuracy,
            digest=self.loaded.card.digest,
            num_classes=self.loaded.target.num_classes,
            image_shape=self.loaded.target.image_shape,
        )

    # ------------------------------------------------------------------------------------------- state

    def _parts(self) -> dict[str, Any]:
        return {
            "attack": self.plan.attack,
            "defense": self.plan.defense,
            "recovery": self.plan.recovery,
            "box": self._box(),
            "reliability": self.reliability,
            "traffic": self.traffic,
        }

    def _save_state(self) -> float:
        self._settle()
        state = {name: part.state_dict() for name, part in self._parts().items()}
        state |= {"format": STATE_FORMAT, "target": self._digest(), "random": random_state(self.device)}
        state["tally"] = vars(self.tally)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.state_path, buffer.getbuffer())
        return time.monotonic()

    def _load_state(self) -> None:
        path = self.state_path
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # whatever a damaged file makes torch raise
            self.listener.warning(f"saved state {path} cannot be read ({type(error).__name__}): starting over")
            return
        if not isinstance(state, dict) or state.get("format") != STATE_FORMAT or state.get("target") != self._digest():
            self.listener.warning(f"saved state {path} is of another target or another version: starting over")
            return
        try:
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
        except Exception as error:  # a component that was changed since may refuse in any way, half restored
            raise StoreError(
                f"saved state {path} does not fit this code ({type(error).__name__}): delete it to start over"
            ) from error
        restore_random_state(state["random"], self.device)
        spent = self.tally.seconds["setup"]
        self.tally = Tally(**state["tally"])
        self.tally.seconds["setup"] += spent
        self.tally.resumed += 1
        self.listener.phase(f"continuing at {self._box().spent} of {self._box().budget} queries")

    def _discard_state(self) -> None:
        """Leave nothing to continue of a finished run, forced or not, and nothing half-written."""
        for path in self.state_path.parent.glob(f"*{self.plan.run_id}*"):
            path.unlink(missing_ok=True)

    def _digest(self) -> str:
        return self.loaded.card.digest if self.loaded else ""

    def _box(self) -> BlackBox:
        if self.box is None:
            raise RuntimeError("the black box exists from the end of the preparation on")
        return self.box

    # ------------------------------------------------------------------------------------------- scopes

    @contextmanager
    def _clock(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.tally.seconds[what] += time.perf_counter() - started


@torch.no_grad()
def _clean(target: Target, images: Tensor) -> Tensor:
    """The target's own answers (N, K), for upper bounds only."""
    with torch.autocast(images.device.type, enabled=False):
        logits: Tensor = target(images.float())
        return logits.float().softmax(dim=1)


def _save_seconds() -> float:
    """``MSBENCH_SAVE_SECONDS``, or `SAVE_SECONDS`. Raises `UsageError` for what is no number from 0."""
    text = os.environ.get("MSBENCH_SAVE_SECONDS") or str(SAVE_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:  # written so that NaN fails
        raise UsageError(f"MSBENCH_SAVE_SECONDS={text!r} is not usable: give seconds, 0 to save after every step")
    return seconds


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The global random state, of the CPU and of a GPU that is used."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Go back to what `random_state` returned."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def _describe(error: Exception) -> ErrorInfo:
    """The error for the record, with the user's home folder left out of its paths."""
    text = "".join(traceback.format_exception(error)).replace(str(Path.home()), "~")
    message = str(error).replace(str(Path.home()), "~")
    return ErrorInfo(type=type(error).__name__, message=message, traceback=text)
