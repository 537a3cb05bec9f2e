"""Settings under which every attack takes moments."""

import dataclasses
from typing import Any

from msbench.components import load_class

CHEAP: dict[str, Any] = {
    "width": 8,
    "latent": 8,
    "epochs": 1,
    "round_epochs": 1,
    "generator_steps": 2,
    "deepfool_steps": 1,
    "proxy": 40,
    "gan_epochs": 1,
    "diversity_epochs": 0,
    "replay_steps": 1,
    "least": 0.5,
}
"""What makes an attack fast, where it has such a parameter."""
CHEAPER: dict[str, dict[str, Any]] = {"activethief": {"rounds": 3}}
"""What means something else to other attacks."""


def cheap(attack: str, batch: int) -> dict[str, Any]:
    """Cheap settings and the batch size, as far as the attack has such parameters."""
    fields = {field.name for field in dataclasses.fields(load_class("attack", attack))}
    wanted = CHEAP | {"batch": batch, "query_batch": batch}
    return {key: value for key, value in wanted.items() if key in fields} | CHEAPER.get(attack, {})
