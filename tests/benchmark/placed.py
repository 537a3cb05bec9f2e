"""An attack that leaves a trace of every step, and ends as it is told. Loaded by path, as a user's own files are."""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from msbench.attacks.base import Attack, AttackContext, AttackTraits, StepReport
from msbench.components import param
from msbench.targets.blackbox import Victim
from torch import nn


@dataclass(kw_only=True)
class Placed(Attack):
    """Queries gray images, forty a step, and writes each step down in the folder that PLACED names.

    ``endings.json`` there may say how a run ends in its first step, by ``NUMBER-SEED``: raise, kill or hang.
    """

    number: int = param(0, "tells runs apart")
    traits: ClassVar[AttackTraits] = AttackTraits(threat_model="control", access="either", queries_per_step="40")

    def setup(self, victim: Victim, context: AttackContext) -> None:
        super().setup(victim, context)
        self.network = context.new_clone("student")

    def step(self) -> StepReport:
        folder, run = Path(os.environ["PLACED"]), f"{self.number}-{self.context.seed}"
        with (folder / "steps").open("a") as steps:
            steps.write(f"{run} {self.victim.spent}\n")
        endings = folder / "endings.json"
        self.end(json.loads(endings.read_text()).get(run, "") if endings.exists() else "")
        count = min(40, self.victim.remaining)
        self.victim.query(torch.full((count, *self.victim.image_shape), 0.5))
        return StepReport(done=self.victim.remaining == 0)

    def end(self, how: str) -> None:
        if how == "raise":
            raise OSError("a file of the user's is gone")
        if how == "kill":
            print("the last words", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            time.sleep(3600)

    def clone(self) -> nn.Module:
        return self.network.eval()
