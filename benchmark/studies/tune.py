"""The search for an attack's hyperparameters and clone architecture, with the same effort for every attack.

Random search over a declared space, balanced over each hyperparameter's values. A trial is one attack on the target
under the given budget, undefended or, because labels want other settings than probabilities, answering with labels
only. Five percent of the budget is held back: after the attack it is spent on images that were not trained on, and the
trial's score is the clone's agreement with the released top classes there, averaged over classes so that one frequent
answer does not decide. Those images are smooth noise: the target answers it with all of its classes, and in a
comparison on digits its order of seven settings was that of their agreement on test images, which patches of
photographs and uniform noise did not give. Nothing here loads the target's test set.

The principle: what learns (batch, optimizer and rate, schedule, clone) has one space for all attacks and is dealt
alike, under whatever names an attack has for it; so has what generates, where an attack has a generator. Beside that
an attack has at most two hyperparameters of its own searched, the passes of those that train from scratch apart, with
its paper's values among the choices; sizes that would make a trial on the CPU too long are cut.

One JSON line a trial is appended to the output file; the same command continues where it was.
"""

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ...attacks.base import Attack, AttackContext
from ...attacks.random_noise import smooth_noise
from ...components import load_class, parse_spec
from ...defenses.deployment import Deployment
from ...defenses.label_only import LabelOnly
from ...defenses.none import NoDefense
from ...errors import ContractViolation, UsageError
from ...targets.architectures import build_clone
from ...targets.blackbox import BlackBox
from ...targets.datasets.base import Dataset, Images
from ...targets.datasets.loading import load_dataset, resize_pool
from ...targets.target import Target
from ...targets.zoo import load_target, parse_target

HELD_OUT_SHARE = 0.05
HELD_OUT_GRID = 4

Space = Mapping[str, Sequence[Any]]
Answers = Literal["probabilities", "labels"]

LEARNER: Space = {
    "batch": (64, 128, 256),
    "optimizer, rate": (
        ("sgd", 0.03),
        ("sgd", 0.1),
        ("sgd", 0.3),
        ("adam", 3e-4),
        ("adam", 1e-3),
        ("adam", 3e-3),
    ),
    "schedule": ("multistep", "cosine", "constant"),
    "clone": ("lenet5", "lenet5:hidden=128", "lenet5:norm=batch", "lenet5:norm=batch,hidden=128"),
}
FLOOR: Space = {"floor": (1e-7, 1e-4)}
GENERATOR: Space = {
    "lr_generator": (1e-4, 3e-4, 1e-3),
    "width": (32, 64),
    "latent": (64, 256),
}
POOL: Space = {"epochs": (5, 10, 20)}
ZEROTH_ORDER: Space = {"directions": (1, 3, 10), "replay_steps": (10, 30)}
SHAPES: Space = {
    "diversity": (20.0, 100.0, 500.0),
    "initial_share": (0.1, 0.25),
    "crop": (1,),  # the paper's four pixels are half of an eight-pixel image, and a mirrored digit is another one
    "flip": (False,),
    # Cut: the paper's are 50,000 shapes, 200 and 100 passes of the GAN, and 200 of each initial clone.
    "proxy": (5_000,),
    "gan_epochs": (5,),
    "diversity_epochs": (2,),
    "epochs": (10,),
}
OWN: Mapping[str, Space] = {
    "dualstudent": {"ema_every": (1, 10, 50)},
    "dfme": {},
    "random_noise": {},
    "knockoff": POOL,
    "copycat": POOL,
    "true_data": {"epochs": (20, 50, 100)},
    "activethief": {
        "validation_share": (0.1, 0.2),
        # Cut: the paper's are up to 1,000 passes, 10 rounds with a clone each, and DeepFool's usual 50 steps.
        "epochs": (5, 10),
        "rounds": (2,),
        "deepfool_steps": (2,),
    },
    "jbda": {
        "step_size": (0.03, 0.1, 0.3),
        "rounds": (6, "none"),
        # Cut: 20 passes of a substitute and 100 of a clone are those of a public re-implementation.
        "round_epochs": (5,),
        **POOL,
    },
    "jbda_tr": {
        "epsilon": (0.03, 0.1, 0.3),
        "round_epochs": (5,),  # cut, as for jbda
        **POOL,
    },
    "maze": ZEROTH_ORDER,
    "maze_pd": ZEROTH_ORDER,
    "dfms_sl": SHAPES,
    "dfms_hl": SHAPES,
    "disguide": {"diversity": (0.04, 0.2, 1.0), "replay_steps": (3, 6)},
    "es_attack": {"lr_synthesis": (0.01, 0.03, 0.1), "epochs": (5, 10)},
    "ideal": {
        "shift": (1, 2, 4),
        # Cut: the paper's rounds are of 250 images and 30 generator steps (5 for CIFAR-10), and a pass over all
        # answers follows each.
        "images": (2500,),
        "generator_steps": (5,),
    },
    "qedg": {
        "threshold": (0.5, 0.7, 0.9),
        "shift": (1, 2, 4),
        # Cut: released are rounds of 256 images and 100 generator steps, of which a sixteenth is asked about at
        # least, 20 passes over all answers after each, and 1,000 at the end.
        "images": (4096,),
        "generator_steps": (5,),
        "least": (0.5,),
        "round_epochs": (1,),
        "epochs": (5,),
    },
}
"""What is searched of an attack's own hyperparameters, for the attacks that are searched at all."""
ON_LABELS: Mapping[str, Space] = {"dualstudent": {"disagree_on": ("logits", "probabilities")}}
"""What is searched besides on answers that are labels: those leave the scale of a student's logits open."""


def space_of(attack: str, answers: Answers = "probabilities") -> Space:
    """What is searched for an attack, by its name or a spec, whose parameters are not searched.

    The space is for small gray targets. The papers' own values are among the choices, but for the generators' 128
    channels, which cost a CPU four times as much, and the sizes that `OWN` names. Raises `UsageError` for an attack
    without a declared space.
    """
    name, given = parse_spec(attack)
    if name not in OWN:
        raise UsageError(f"no search space for attack {name!r}: known are {', '.join(OWN)}")
    known = _fields(name)
    shared = {
        key: values
        for key, values in {**LEARNER, **FLOOR, **GENERATOR}.items()
        if key in known or key in ("clone", "optimizer, rate")
    }
    own = {**OWN[name], **(ON_LABELS.get(name, {}) if answers == "labels" else {})}
    return {key: values for key, values in {**shared, **own}.items() if key not in given}


def draw(space: Space, seed: int, trial: int) -> dict[str, Any]:
    """The hyperparameters of one trial, determined by seed and trial number.

    Each is dealt from a deck of its own values that is shuffled anew when it is used up: a few trials then try every
    value, each about as often as the others. What attacks have in common is dealt alike for all of them.
    """
    dealt = {}
    for name, values in space.items():
        deck = list(values)
        random.Random(f"{seed} {trial // len(deck)} {name}").shuffle(deck)
        dealt[name] = deck[trial % len(deck)]
    return dealt


def as_settings(attack: str, drawn: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The clone architecture and the attack's parameters that a draw stands for.

    Rate and batch are those of everything that learns from answers, whatever the attack calls it.
    """
    params = dict(drawn)
    clone = params.pop("clone")
    optimizer, rate = params.pop("optimizer, rate")
    learner = {"optimizer": optimizer, "lr": rate, "lr_student": rate, "lr_initial": rate}
    if "batch" in params:
        learner["initial_batch"] = params["batch"]
    name, given = parse_spec(attack)
    return clone, params | {key: value for key, value in learner.items() if key in _fields(name) - given.keys()}


def _fields(attack: str) -> set[str]:
    return {field.name for field in fields(load_class("attack", attack))}


def answers_for(attack: str, asked: Answers) -> Answers:
    """What a trial's victim answers with: labels, whatever is asked, for an attack that uses nothing else."""
    cls = cast(type[Attack], load_class("attack", parse_spec(attack)[0]))
    return "labels" if cls.traits.access == "labels" else asked


def tune(
    target_name: str,
    attack: str,
    *,
    answers: Answers = "probabilities",
    budget: int,
    trials: int,
    seed: int,
    data_dir: Path,
    output: Path,
) -> Iterator[dict[str, Any]]:
    """Run the trials that ``output`` does not hold yet and yield every trial's line, in order.

    Args:
        target_name: ``DATASET/ARCHITECTURE``.
        attack: a spec; what it gives is not searched.
        answers: what the victim answers with.
        budget: queries of one trial, those held back included.
        trials: how many.
        seed: of the draws and of every trial.
        data_dir: where data sets and targets lie.
        output: a file of JSON lines, which need not exist.

    Raises `UsageError` for an attack without a declared search space.
    """
    answers = answers_for(attack, answers)
    space = space_of(attack, answers)
    done = _read(output)
    loaded = load_target(target_name, data_dir=data_dir)
    pool = _pool(attack, loaded.dataset, data_dir, loaded.target.image_shape)
    for trial in range(trials):
        key = [target_name, attack, budget, seed, trial] + (["labels"] if answers == "labels" else [])
        if json.dumps(key) not in done:
            clone, params = as_settings(attack, draw(space, seed, trial))
            result = run_trial(loaded.target, attack, params, clone, budget, seed, pool, answers)
            line = {"key": key, "clone": clone, "params": params, **result}
            with output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            done[json.dumps(key)] = line
        yield done[json.dumps(key)]


def run_trial(
    target: Target,
    attack_spec: str,
    params: Mapping[str, Any],
    clone: str,
    budget: int,
    seed: int,
    pool: Images | None,
    answers: Answers,
) -> dict[str, Any]:
    """One attack and its score, ``{"score", "seconds"}``; all queries together are ``budget``.

    An attack whose weights diverge until it asks about images that are none scores zero, and ``error`` says why.
    """
    started = time.perf_counter()
    kept = max(1, int(budget * HELD_OUT_SHARE))
    defense = LabelOnly() if answers == "labels" else NoDefense()
    deployment = Deployment(target, defense)
    box = partial(
        BlackBox,
        lambda images: deployment.answer(images)[1],
        num_classes=target.num_classes,
        image_shape=target.image_shape,
        labels_only=defense.traits.labels_only,
    )
    name, given = parse_spec(attack_spec)
    attack = cast(Attack, load_class("attack", name).from_params({**params, **given}))
    network = partial(build_clone, clone, num_classes=target.num_classes, image_shape=target.image_shape)
    context = AttackContext(
        device=torch.device("cpu"),
        seed=seed,
        precision=torch.float32,
        build_clone=lambda stream: network(seed=stream),
        pool=pool,
    )
    attack.setup(box(budget=budget - kept), context)
    try:
        while not attack.step().done:
            pass
    except ContractViolation as error:
        return {"score": 0.0, "seconds": time.perf_counter() - started, "error": str(error)}
    probe = torch.Generator().manual_seed(context.stream("held out"))
    images = smooth_noise(kept, target.image_shape, HELD_OUT_GRID, probe)
    score = balanced_agreement(attack.clone(), images, box(budget=kept).query(images))
    return {"score": score, "seconds": time.perf_counter() - started}


@torch.no_grad()
def balanced_agreement(clone: nn.Module, images: Tensor, answers: Tensor) -> float:
    """Share of images with the same top class, averaged over the classes that the answers name."""
    named = answers.argmax(dim=1)
    same = (clone(images).argmax(dim=1) == named).double()
    shares = [float(same[named == k].mean()) for k in torch.unique(named)]
    return sum(shares) / len(shares)


def best_of(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The line with the highest score; of equals, the earliest trial's."""
    return max(lines, key=lambda line: float(line["score"]))


def as_table(target_name: str, attack: str, answers: Answers, line: Mapping[str, Any]) -> str:
    """A trial's settings as they stand in ``hyperparameters.toml``."""
    dataset = parse_target(target_name).dataset.label()
    quoted = attack if ":" not in attack else json.dumps(attack)
    apart = answers == "labels" and answers_for(attack, "probabilities") != "labels"
    table = f"{dataset}.{quoted}.labels" if apart else f"{dataset}.{quoted}"
    params = [f"{key} = {json.dumps(value)}" for key, value in line["params"].items()]
    return "\n".join([f"[{table}]", f"clone = {json.dumps(line['clone'])}", f"[{table}.params]", *params])


def _pool(attack: str, dataset: Dataset, data_dir: Path, shape: tuple[int, int, int]) -> Images | None:
    """The images that the attack's traits grant: the target's own, or those of the data set declared for it."""
    granted = cast(type[Attack], load_class("attack", parse_spec(attack)[0])).traits.pool
    if granted == "none" or (granted == "unrelated" and dataset.pool is None):
        return None
    source = dataset if granted == "target" or dataset.pool is None else load_dataset(dataset.pool)
    return resize_pool(source.load("train", data_dir=data_dir, download=False, device="cpu"), shape)


def _read(output: Path) -> dict[str, dict[str, Any]]:
    if not output.exists():
        return {}
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {json.dumps(line["key"]): line for line in lines}
