"""How soon detectors notice an attack: its recorded queries are replayed to them, mixed with honest ones.

An attack on the undefended target is recorded. Accounts of equal length are then made up: honest ones are images of
the target's test set, no image twice; the attack's are stretches of the recording, among which honest images stand at
random places. Each account comes to the detector as a newcomer.

A detector judges queries, or accounts by their most suspicious moment. Its rates are measured twice: at the limit of
suspicion that it deploys, fitted without test data, and at the limit that one in a thousand of the honest queries or
accounts exceeds, which is a property of the measurement. With fewer than a thousand of them none does. Honest accounts
share the images of one test set, so that they are less different than a thousand users are.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...attacks.base import AttackContext
from ...defenses.base import DefenseContext, load_defense
from ...defenses.detection import Detector
from ...errors import UsageError
from ...leaderboard.texts import MISSING
from ...targets.architectures import build_clone
from ...targets.blackbox import BlackBox
from ...targets.datasets.base import Dataset, Images
from ...targets.datasets.loading import resize_pool
from ...targets.training import recipe_for
from ...targets.zoo import Loaded, load_target, parse_target
from ..images import auxiliary
from ..spec import RunSpec, resolve

SHARES = (0.0, 0.25, 0.5, 0.9)
"""Shares of honest queries in an attack's account."""
FALSE_POSITIVES = 0.001


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What accounts are made up of."""

    queries: int = 5000
    """Queries of the attack that are recorded."""
    length: int = 300
    """Queries of an account."""
    attackers: int = 100
    """Accounts of the attack, for each share of honest queries."""
    honest: int = 1000
    """Honest accounts."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One detector against one attack and one share of honest queries. Rates are from 0 to 1."""

    attack: str
    defense: str
    unit: str
    """What is counted: queries or accounts."""
    benign_share: float
    true_positives: float
    """At one false positive in a thousand."""
    queries_until_detection: int | None
    """Median over the attack's accounts, at that limit: honest queries count, but where each is judged by itself, an
    alarm on one of them is no detection; null if more than half go undetected."""
    deployed_true_positives: float
    """At the detector's own limit."""
    deployed_false_positives: float
    deployed_queries_until_detection: int | None

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON takes it."""
        return asdict(self)


def measure(
    target: str, attacks: Sequence[str], defenses: Sequence[str], settings: Settings, *, data_dir: Path
) -> Iterator[Row]:
    """Measure every detector against every attack, a row for each share in `SHARES`.

    Raises `UsageError` for a defense that is no detector, and for accounts longer than the test set or the recording.
    """
    detectors = {spec: _detector(spec) for spec in defenses}
    loaded = load_target(target, data_dir=data_dir)
    test = loaded.dataset.load("test", data_dir=data_dir, download=False, device="cpu")
    for limit, what in ((len(test), "images in the test set"), (settings.queries, "recorded queries")):
        if settings.length > limit:
            raise UsageError(f"accounts of {settings.length} queries are too long: there are {limit} {what}")
    honest, _ = test.take(torch.arange(len(test)))
    for detector in detectors.values():
        detector.prepare(_context(target, loaded, settings.seed, data_dir).granted(detector))
    quiet: dict[str, Tensor] = {}  # what detectors make of honest accounts, whatever the attack is
    for attack in attacks:
        recording = record_queries(target, loaded, attack, settings, data_dir)
        replay = Replay(loaded, recording, honest, settings)
        for spec, detector in detectors.items():
            if spec not in quiet:
                quiet[spec] = replay.quiet(detector)
            yield from replay.rows(attack, spec, detector, quiet[spec])


class Replay:
    """Made-up accounts, as places among the recorded and the honest images, and the target's answers about those."""

    def __init__(self, loaded: Loaded, recording: Tensor, honest: Tensor, settings: Settings) -> None:
        self.settings = settings
        self.images = torch.cat([recording, honest])
        with torch.no_grad():
            logits = [loaded.target(part) for part in torch.split(self.images, 1024)]
        self.probs = torch.cat(logits).softmax(dim=1)
        self.recorded = len(recording)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.benign = torch.stack([self._account(1.0) for _ in range(settings.honest)])
        self.all_honest = torch.arange(len(recording), len(self.images))
        self.attacking = {
            share: torch.stack([self._account(share) for _ in range(settings.attackers)]) for share in SHARES
        }

    def quiet(self, detector: Detector) -> Tensor:
        """How suspicious honest cases are: every image, of a detector that judges each by itself, or every account."""
        if detector.unit == "query":
            return self._suspicions(detector, self.all_honest[None])[0]
        return self._suspicions(detector, self.benign).amax(dim=1)

    def rows(self, attack: str, spec: str, detector: Detector, quiet: Tensor) -> Iterator[Row]:
        """A detector's rows, given what `quiet` says of honest cases."""
        by_query = detector.unit == "query"
        limit = exceeded_by(quiet, FALSE_POSITIVES)
        for share, accounts in self.attacking.items():
            loud = self._suspicions(detector, accounts)
            of_attack = accounts < self.recorded
            # An alarm on an honest query is false, whoever asked it.
            telling = loud.masked_fill(~of_attack, -math.inf) if by_query else loud

            def caught(limit: float, loud: Tensor = loud, of_attack: Tensor = of_attack) -> float:
                return _share(loud[of_attack] > limit if by_query else loud.amax(dim=1) > limit)

            yield Row(
                attack=attack,
                defense=spec,
                unit=detector.unit,
                benign_share=share,
                true_positives=caught(limit),
                queries_until_detection=until(telling, limit),
                deployed_true_positives=caught(detector.limit),
                deployed_false_positives=_share(quiet > detector.limit),
                deployed_queries_until_detection=until(telling, detector.limit),
            )

    def _account(self, share: float) -> Tensor:
        """The places (L,) of an account's queries, in order."""
        length, honest = self.settings.length, len(self.images) - self.recorded
        count = round(share * length)
        start = int(torch.randint(self.recorded - (length - count) + 1, (), generator=self.generator))
        account = torch.empty(length, dtype=torch.long)
        mixed = torch.randperm(length, generator=self.generator)
        chosen = torch.randperm(honest, generator=self.generator)[:count]
        account[mixed[:count]] = self.recorded + chosen
        account[mixed[count:].sort().values] = torch.arange(start, start + length - count)
        return account

    def _suspicions(self, detector: Detector, accounts: Tensor) -> Tensor:
        """How suspicious each query of each account is (A, L), the accounts being newcomers."""
        detector.attend(None)
        suspicions = []
        for account in accounts:
            detector.release(self.probs[account], self.images[account])
            suspicions.append(detector.scores)
        return torch.stack(suspicions)


def exceeded_by(suspicions: Tensor, share: float) -> float:
    """The lowest limit that no more than a share of these suspicions (N,) exceed."""
    return float(suspicions.sort(descending=True).values[math.floor(len(suspicions) * share + 1e-9)])


def until(suspicions: Tensor, limit: float) -> int | None:
    """The median over accounts (A, L) of the first query above the limit, from 1; None if more than half have none."""
    over = suspicions > limit
    first = torch.where(over.any(dim=1), over.long().argmax(dim=1) + 1.0, math.inf)
    middle = float(first.median())
    return int(middle) if math.isfinite(middle) else None


def record_queries(target: str, loaded: Loaded, attack: str, settings: Settings, data_dir: Path) -> Tensor:
    """The images (Q, C, H, W) that an attack on the undefended target asks about, in order.

    Raises `UsageError` if it asks about fewer than an account holds.
    """
    plan = resolve(RunSpec(target=target, attack=attack, budget=settings.queries, seed=settings.seed))
    asked: list[Tensor] = []

    @torch.no_grad()
    def answer(images: Tensor) -> Tensor:
        asked.append(images.clone())
        answers: Tensor = loaded.target(images).softmax(dim=1)
        return answers

    shape, num_classes = loaded.target.image_shape, loaded.target.num_classes
    box = BlackBox(answer, budget=settings.queries, num_classes=num_classes, image_shape=shape)
    images = plan.pool.load("train", data_dir=data_dir, download=False, device="cpu") if plan.pool else None
    context = AttackContext(
        device=torch.device("cpu"),
        seed=settings.seed,
        precision=torch.float32,
        build_clone=lambda seed: build_clone(plan.info.clone, num_classes=num_classes, image_shape=shape, seed=seed),
        pool=resize_pool(images, shape) if images else None,
    )
    plan.attack.setup(box, context)
    while not plan.attack.step().done:
        pass
    recording = torch.cat(asked)
    if len(recording) < settings.length:
        raise UsageError(
            f"{attack} asked only {len(recording)} queries, fewer than the {settings.length} of an account"
        )
    return recording


def _detector(spec: str) -> Detector:
    defense = load_defense(spec)
    if not isinstance(defense, Detector):
        raise UsageError(f"defense {spec!r} detects nothing: choose detectors, such as prada")
    return defense


def _context(target: str, loaded: Loaded, seed: int, data_dir: Path) -> DefenseContext:
    shape, num_classes = loaded.target.image_shape, loaded.target.num_classes
    architecture = parse_target(target).architecture
    handed = copy.deepcopy(loaded.target)

    def training_images(dataset: Dataset) -> Images:
        return resize_pool(dataset.load("train", data_dir=data_dir, download=False, device="cpu"), shape)

    return DefenseContext(
        num_classes=num_classes,
        image_shape=shape,
        device=torch.device("cpu"),
        seed=seed,
        new_surrogate=lambda own: build_clone(
            architecture, num_classes=num_classes, image_shape=shape, seed=own
        ).eval(),
        target=lambda: handed,
        data=lambda: training_images(loaded.dataset),
        auxiliary=lambda name: training_images(auxiliary(loaded.dataset, name)),
        recipe=recipe_for(loaded.dataset.label()),
    )


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())


def as_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table: rates in percent, at one false positive in a thousand and at the deployed limit."""

    def count(queries: int | None) -> str:
        return MISSING if queries is None else str(queries)

    head = ("attack", "detector", "unit", "honest", "TPR", "queries", "own TPR", "own FPR", "own queries")
    rule = ("---",) * 3 + ("---:",) * 6
    lines = [
        (
            row.attack,
            row.defense,
            row.unit,
            f"{row.benign_share:.0%}",
            f"{row.true_positives:.1%}",
            count(row.queries_until_detection),
            f"{row.deployed_true_positives:.1%}",
            f"{row.deployed_false_positives:.2%}",
            count(row.deployed_queries_until_detection),
        )
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))
