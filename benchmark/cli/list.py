"""``msbench list``: what there is to choose from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

import click

from ...errors import MsbenchError
from .options import json_option

_KINDS = {"attacks": "attack", "defenses": "defense", "recoveries": "recovery", "datasets": "dataset"}


@click.command("list")
@click.argument("kind", type=click.Choice([*_KINDS, "targets", "suites"]))
@click.argument("pattern", default="*")
@json_option
def list_(kind: str, pattern: str, as_json: bool) -> None:
    """List attacks, defenses, recoveries, targets, data sets or suites.

    PATTERN selects names by wildcards, 'df*' say. Targets are those that come with msbench and those trained so far;
    each other DATASET/ARCHITECTURE is trained when it is first used.
    """
    if kind == "targets":
        print_targets(pattern, as_json=as_json)
        return
    if kind == "suites":
        print_suites(pattern, as_json=as_json)
        return
    rows = _component_rows(_KINDS[kind], pattern)
    _print(rows, as_json=as_json)
    if not rows:
        click.echo(f"no {kind} match {pattern!r}", err=True)


def print_suites(pattern: str = "*", *, as_json: bool) -> None:
    """Print the packaged suites with their targets and budgets, and where they are frozen the number of runs."""
    from ...leaderboard.suites import load_suite, names
    from ..suite import packaged, read_plan

    rows = []
    for name in packaged():
        tables = read_plan(name).table
        budgets = sorted({budget for table in tables for budget in table.budgets})
        frozen = load_suite(name).tables if name in names() else ()
        runs = sum(len(list(table.cells())) * len(table.seeds) for table in frozen) or None
        targets = tuple(dict.fromkeys(table.target for table in tables))
        rows.append({"name": name, "targets": targets, "budgets": budgets, "runs": runs})
    _print([row for row in rows if fnmatchcase(str(row["name"]), pattern)], as_json=as_json)


def print_targets(pattern: str = "*", *, as_json: bool) -> None:
    """Print the targets that come with msbench and those trained here, and for people what else could be trained."""
    from ...targets.architectures import our_architectures
    from ...targets.reference import cards
    from ...targets.zoo import cached_targets

    known = [("msbench", card) for card in cards()] + [("here", card) for card in cached_targets()]
    rows = [{"name": card.name, "trained": where} | asdict(card) for where, card in known]
    rows = [row for row in rows if fnmatchcase(row["name"], pattern)]
    if as_json:
        _print(rows, as_json=True)
        return
    shown = ("name", "seed", "accuracy", "trained", "digest")
    _print([{key: row[key] for key in shown} for row in rows], as_json=False)
    architectures = ", ".join(our_architectures())
    click.echo(f"{len(rows)} ready to use. Architectures: {architectures}, and any that timm knows by name.")


def _print(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif rows:
        from .display import stdout, table

        headers = [key.replace("_", " ") for key in rows[0]]
        stdout().print(table(headers, [list(row.values()) for row in rows]))


def _component_rows(kind: str, pattern: str) -> list[dict[str, Any]]:
    from ...components import origin, working
    from .wording import citation, summary

    return [
        {"name": name, **_declared(kind, cls), "summary": summary(cls)}
        | {"paper": citation(cls.paper), "origin": origin(kind, name)}
        for name, cls in working(kind)
        if fnmatchcase(name, pattern)
    ]


def _declared(kind: str, cls: Any) -> dict[str, Any]:
    """What tells the components of a kind apart."""
    from .wording import family

    if kind == "attack":
        traits = cls.traits
        return {
            "threat_model": traits.threat_model,
            "access": traits.access,
            "queries_per_step": traits.queries_per_step,
        }
    if kind == "defense":
        traits = cls.traits
        return {"family": family(traits), "needs": traits.needs, "knob": traits.knob}
    if kind == "recovery":
        traits = cls.traits
        return {"knows": traits.knows, "queries_per_image": traits.queries_per_image}
    return _dataset_size(cls) | {"pool": cls.pool} if kind == "dataset" else {}


def _dataset_size(cls: Any) -> dict[str, Any]:
    """Classes and image shape; unknown for a folder of one's own, which a path would have to name."""
    try:
        dataset = cls()
        return {"classes": dataset.num_classes, "shape": dataset.image_shape}
    except MsbenchError:
        return {"classes": None, "shape": None}
