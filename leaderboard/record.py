"""The record: what one run leaves behind, as one JSON file. Everything else is derived from records.

Numbers are numbers, never formatted text; a value that does not exist is null, never a guess. Unknown keys
are refused, so that a typo cannot hide. Hostname and user are never written. A change of this schema raises
``schema_version`` and changes ``schema.json`` and the golden files in the tests; a record of an earlier version is
still read, and written as that version had it.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

SCHEMA_VERSION = 6

Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[FiniteFloat, Field(ge=0)]
Nonnegative = Annotated[FiniteFloat, Field(ge=0)]

_SINCE: dict[int, dict[str, tuple[str, ...]]] = {
    3: {"paid": ("flagged", "refused"), "diagnostics": ("detection",)},
    4: {"paid": ("shifted",)},
    5: {"env": ("arithmetic",)},
    6: {"diagnostics": ("auxiliary",)},
}
"""Which keys of which sections came with which version."""


def _finite(values: Any) -> Any:
    """Refuse NaN and infinity at any depth: JSON has none, and two runs would share one identity."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, float):
            if not math.isfinite(value):
                raise ValueError(f"{value} is not a JSON number")
        elif isinstance(value, _NESTED):  # called for these only: ten thousand records have 150,000 values
            _finite(value)
    return values


_NESTED = (dict, list, tuple)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class ComponentInfo(_Section):
    """A component as it was resolved: all hyperparameters, defaults included."""

    name: str
    version: str
    params: Annotated[dict[str, Any], AfterValidator(_finite)]


def copy_of(target: ComponentInfo, seed: int) -> ComponentInfo:
    """A target of the same recipe, trained with this seed; one whose weights were given has no copies."""
    return target.model_copy(update={"params": target.params | {"seed": seed}}) if "seed" in target.params else target


class SpecInfo(_Section):
    """What determines the run completely; its hash is the run's identity."""

    protocol: str
    """Version of the rules of measurement."""
    target: ComponentInfo
    """``DATASET/ARCHITECTURE`` with the training seed, or the digest of a checkpoint."""
    defense: ComponentInfo
    attack: ComponentInfo
    recovery: ComponentInfo
    clone: str
    """Architecture of the clone, as a spec."""
    pool: str | None
    """The attacker's own images, as a data set spec; null for data-free attacks."""
    budget: Annotated[int, Field(ge=1)]
    """Queries allowed; one query is one image."""
    seed: Count
    """The attack's seed."""
    defense_seed: Count
    """The defense's own seed."""
    precision: Literal["fp32", "bf16"]

    @property
    def target_seed(self) -> int:
        """Which copy of the target was attacked; 0 where its weights were given."""
        seed = self.target.params.get("seed", 0)
        return seed if isinstance(seed, int) else 0

    def without_seeds(self) -> "SpecInfo":
        """What all runs of a cell have in common: every seed is 0, the target's too."""
        return self.model_copy(update={"seed": 0, "defense_seed": 0, "target": copy_of(self.target, 0)})


class TargetInfo(_Section):
    """The target as it was attacked."""

    accuracy: Share
    """On the held-out test set, undefended."""
    digest: str
    """SHA-256 of its weights."""
    num_classes: Annotated[int, Field(ge=2)]
    image_shape: tuple[int, int, int]


class BudgetInfo(_Section):
    """What was allowed and what was used."""

    limit: Annotated[int, Field(ge=1)]
    spent: Count
    stop: str
    """Why the attack ended: ``budget spent``, or what it said when it left some."""


class Transfer(_Section):
    """Adversarial examples made on the clone and shown to the undefended target."""

    epsilon: Annotated[FiniteFloat, Field(gt=0)]
    """L-infinity radius in pixel units."""
    images: Count
    """Test images used: those that the target gets right."""
    fgsm: Share
    """Share of those images that the target now gets wrong."""
    bim: Share
    pgd: Share


class Stolen(_Section):
    """What the attacker got away with, on the target's held-out test set."""

    clone_accuracy: Share
    agreement: Share
    """Same top class as the undefended target."""
    agreement_released: Share
    """Same top class as what the defense releases."""
    kl: Nonnegative
    """Mean KL(target || clone), nats."""
    l1: Annotated[FiniteFloat, Field(ge=0, le=2)]
    """Mean L1 distance between target's and clone's probabilities."""
    queries_to_half: Count | None
    """Queries at the first milestone with half of the target's accuracy; null if never reached."""
    queries_to_90: Count | None
    """The same for 90 % of the target's accuracy."""
    area_under_curve: Share
    """Mean clone accuracy over log-queries, from the first milestone to the last."""
    transfer: Transfer


class Distance(_Section):
    """L1 distance of released from clean answers."""

    mean: Annotated[FiniteFloat, Field(ge=0, le=2.0001)]
    p95: Annotated[FiniteFloat, Field(ge=0, le=2.0001)]
    max: Annotated[FiniteFloat, Field(ge=0, le=2.0001)]


class Shifted(_Section):
    """What honest users pay for images a little off the data: a shifted copy of the test set.

    Every image is moved, changed in contrast and made noisy, always in the same way, and clipped to [0, 1]. No
    defense has seen it.
    """

    images: Annotated[int, Field(ge=1)]
    """So many of the test set, chosen at random, in all runs the same."""
    undefended: Share
    """Accuracy of the undefended target."""
    defended: Share
    """Accuracy of what is released after the attack's traffic; a refused image counts as wrong."""
    argmax_changed: Share
    """Images whose released top class is not the target's; a refused one has none."""
    l1: Annotated[FiniteFloat, Field(ge=0, le=2.0001)]
    """Mean L1 distance of released from clean answers."""


class Paid(_Section):
    """What the defense cost an honest user, through the same deployed path."""

    defended_accuracy: Share
    """After the attack's traffic."""
    defended_accuracy_before: Share
    """Before the attack's first query."""
    argmax_changed: Share
    """Test images whose released top class is not the target's; a refused one has none."""
    flagged: Share | None = None
    """Test images that the defense took for an attack's; null for one that detects nothing."""
    refused: Share | None = None
    """Test images that it did not answer, which count as wrong; null for one that detects nothing."""
    l1: Distance
    """On the test set."""
    l1_queries: Distance | None
    """On the attack's queries; null if it made none."""
    nll: Nonnegative
    """Mean negative log-likelihood of the true label under the released answer, floored at 1e-12."""
    ece: Share
    """Expected calibration error, 15 equal bins."""
    auroc: Share | None
    """How well the released top probability tells test images from the data set's declared unrelated pool."""
    shifted: Shifted | None = None
    """The same on a shifted copy of the test set; null in records before version 4."""
    state_bytes: Count
    """Size of the defense's state after the run."""


class CurvePoint(_Section):
    """The clone at one milestone."""

    queries: Count
    clone_accuracy: Share
    agreement: Share
    defended_accuracy: Share
    """Measured between the attack's queries."""


class Detection(_Section):
    """What a defense that detects made of the attack's queries."""

    flagged: Count
    refused: Count
    """Queries that were charged but not answered."""
    first_flagged: Count | None
    """The first query that was flagged, counted from 1; null if none was."""


class Diagnostics(_Section):
    """What the attack asked about, and what the defense made of it."""

    label_histogram: list[Count]
    """How often the undefended target predicts each class on the queried images."""
    label_entropy: Nonnegative
    """Entropy of that histogram, nats; log K is balanced."""
    query_distance: Nonnegative | None
    """Mean L2 distance, per pixel (RMS), of the last queried images from their nearest test image."""
    attack: dict[str, FiniteFloat]
    """The attack's own numbers at the end."""
    detection: Detection | None = None
    """Null for a defense that detects nothing."""
    auxiliary: list[str] = []
    """Data sets beside the target's own that the defense was given, each in full where the defense says ``pool``."""


class Timing(_Section):
    """What the run cost, in seconds over all its sessions and in memory; all that differs between equal runs."""

    created_utc: str
    wall: Seconds
    attack: Seconds
    evaluation: Seconds
    latency_ratio: dict[str, Nonnegative]
    """Time per answer of the deployed path over that of the bare target, at batch sizes 1 and 256."""
    resumed: Count
    """How many times the run was continued from saved state."""
    peak_memory: Count | None
    """Bytes: the most that was allocated on the GPU, or, on the CPU, that the process held; null where unknown."""


class Environment(_Section):
    """Where it ran. Never hostname or user."""

    msbench: str
    python: str
    torch: str
    timm: str
    platform: str
    device: str
    threads: Count
    compiled: bool
    """Whether the attack's networks were compiled."""
    arithmetic: str | None = None
    """A digest of what a small training comes to, which is the same only where sums are rounded alike; null on a
    GPU, whose results need not repeat, and in records of before version 5."""
    commit: str | None
    """Commit of the checkout that msbench runs from; null when installed."""
    dirty: bool | None


class ErrorInfo(_Section):
    """Why a run failed."""

    type: str
    message: str
    traceback: str


class Record(_Section):
    """One run."""

    schema_version: Literal[2, 3, 4, 5, 6] = 6
    """Version 2 knew no detection: its records lack what a defense flagged and refused. Version 3 knew no shifted
    copy of the test set, and flagged nothing but a top class or an accuracy that changed."""
    protocol: str
    run_id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    status: Literal["done", "failed", "interrupted"]
    spec: SpecInfo
    target: TargetInfo | None
    budget: BudgetInfo
    stolen: Stolen | None
    paid: Paid | None
    curve: list[CurvePoint]
    diagnostics: Diagnostics | None
    flags: list[str]
    """What a reader should know before trusting the numbers."""
    timing: Timing
    env: Environment
    error: ErrorInfo | None

    @model_validator(mode="after")
    def _consistent(self) -> "Record":
        if self.budget.spent > self.budget.limit:
            raise ValueError(f"spent {self.budget.spent} queries of a budget of {self.budget.limit}")
        if self.budget.limit != self.spec.budget:
            raise ValueError(f"budget.limit {self.budget.limit} is not spec.budget {self.spec.budget}")
        if self.protocol != self.spec.protocol:
            raise ValueError(f"protocol {self.protocol} is not spec.protocol {self.spec.protocol}")
        if self.status == "done" and (self.stolen is None or self.paid is None or self.target is None):
            raise ValueError("a record that is done needs target, stolen and paid")
        for version, name in self._unmeasured():
            if self.status == "done" and self.schema_version >= version:
                raise ValueError(f"{name} is missing: every finished run measures it since schema version {version}")
        if self.status == "failed" and self.error is None:
            raise ValueError("a record that failed needs error")
        if self.run_id != run_id(self.spec):
            raise ValueError(f"run_id {self.run_id} is not the hash of the spec, {run_id(self.spec)}")
        return self

    def _unmeasured(self) -> Iterator[tuple[int, str]]:
        """What no run leaves out, each with the version that it came with: null hides a number, and is none."""
        if self.paid is not None and self.paid.l1_queries is None:
            yield 1, "paid.l1_queries"
        if self.timing.latency_ratio.keys() != {"1", "256"}:
            yield 1, "timing.latency_ratio at 1 and 256"
        if self.paid is not None and self.paid.shifted is None:
            yield 4, "paid.shifted"
        if self.env.device == "cpu" and self.env.arithmetic is None:
            yield 5, "env.arithmetic"

    @model_serializer(mode="wrap")
    def _as_its_version_had_it(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the keys that came later, so that reading and writing an old record changes nothing."""
        data: dict[str, Any] = serialize(self)
        later = [added for version, added in _SINCE.items() if version > self.schema_version]
        for section, keys in ((name, keys) for added in later for name, keys in added.items()):
            for key in keys:
                (data.get(section) or {}).pop(key, None)
        return data


def run_id(spec: SpecInfo) -> str:
    """The identity of a run: twelve hexadecimal digits of the SHA-256 of its canonical spec."""
    return hashlib.sha256(_canonical(spec.model_dump(mode="json")).encode()).hexdigest()[:12]


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def schema_text() -> str:
    """The JSON Schema of a record, as ``leaderboard/schema.json`` holds it."""
    return json.dumps(Record.model_json_schema(), sort_keys=True, indent=2, ensure_ascii=False) + "\n"
