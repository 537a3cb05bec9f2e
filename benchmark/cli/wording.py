"""What a component declares, in words."""

import dataclasses
import inspect
import re
import unicodedata
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from ...attacks.base import AttackTraits
    from ...attacks.recovery.base import RecoveryTraits
    from ...components import Component, Paper
    from ...defenses.base import Traits

_ACCENTS = {"`": "\u0300", "'": "\u0301", "^": "\u0302", "~": "\u0303", '"': "\u0308"}
"""TeX's accents as Unicode's combining characters."""


def summary(cls: type) -> str:
    """The first line of the docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0].replace("``", "")


def citation(paper: "Paper | None") -> str:
    """A paper in a few words: ``Truong et al. 2021, arXiv 2011.14779``."""
    if paper is None:
        return ""
    families = [_family(author) for author in plain(paper.authors).split(" and ")]
    who = " and ".join(families) if len(families) < 3 else f"{families[0]} et al."
    return f"{who} {paper.year}" + (f", arXiv {paper.arxiv}" if paper.arxiv else "")


def reference(paper: "Paper") -> str:
    """A paper as a list of references has it."""
    where = [plain(paper.venue)] if paper.venue else []
    where += [f"arXiv {paper.arxiv}"] if paper.arxiv else []
    parts = [plain(paper.authors), plain(paper.title), ", ".join([*where, str(paper.year)])]
    return ". ".join(part.rstrip(".") for part in parts)


def plain(tex: str) -> str:
    """BibTeX's text without braces, and with its accents put on the letters."""
    accented = re.sub(r"""\\([`'^~"])\{?(\w)\}?""", lambda found: found[2] + _ACCENTS[found[1]], tex)
    return unicodedata.normalize("NFC", re.sub(r"[{}\\]", "", accented))


def _family(author: str) -> str:
    family, comma, _ = author.partition(",")
    return family.strip() if comma else author.split()[-1]


def parameters(cls: "type[Component]") -> list[tuple[str, str, str, str, str]]:
    """Name, type, default, range and meaning of each hyperparameter."""
    hints = get_type_hints(cls)
    return [
        (
            field.name,
            _type_name(hints[field.name]),
            _default(field.default),
            _range(hints[field.name], field.metadata.get("bounds", {})),
            field.metadata.get("doc", ""),
        )
        for field in dataclasses.fields(cls)
    ]


def _default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    return "none" if value is None else str(value)


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "choice"
    if isinstance(hint, UnionType):
        return " or ".join(map(_type_name, get_args(hint)))
    if hint is NoneType:
        return "none"
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _range(hint: Any, bounds: dict[str, float]) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)))
    return ", ".join(f"{sign} {bound}" for sign, bound in bounds.items())


def traits(component: "Component | type[Component]") -> list[str]:
    """What an attack, a recovery or a defense says about itself, a sentence each; other kinds say nothing.

    A setting may differ from its class.
    """
    from ...attacks.base import Attack
    from ...attacks.recovery.base import Recovery
    from ...defenses.base import Defense

    cls = component if isinstance(component, type) else type(component)
    if issubclass(cls, Attack):
        return _attack_traits(component.traits)  # type: ignore[union-attr]
    if issubclass(cls, Recovery):
        return _recovery_traits(component.traits)  # type: ignore[union-attr]
    if issubclass(cls, Defense):
        return _defense_traits(component.traits)  # type: ignore[union-attr]
    return []


def family(declared: "Traits") -> str:
    """The table that a defense is ranked in: each family has its own."""
    if declared.stage != "output":
        return declared.stage
    if declared.stateful:
        return "stateful"
    return "randomized" if declared.stochastic else "deterministic"


_THREAT_MODELS = {
    "data-free": "Data-free: it makes the images that it queries with.",
    "pool": "Pool: it queries with images of a data set that the attacker owns.",
    "control": "Control: it is there for attacks to be compared with.",
}
_POOLS = {
    "none": "It is given no images.",
    "unrelated": "It is given the images of an unrelated data set.",
    "target": "It is given the images that the target was trained on, which makes it an upper bound.",
}
_ACCESS = {
    "probabilities": "It needs probabilities.",
    "labels": "It uses labels only.",
    "either": "It works with probabilities, and with labels only.",
}


def _attack_traits(declared: "AttackTraits") -> list[str]:
    return [
        _THREAT_MODELS[declared.threat_model],
        _POOLS[declared.pool],
        _ACCESS[declared.access],
        f"Queries per step: {declared.queries_per_step} (B is the batch size).",
    ]


_KNOWLEDGE = {
    "defense": "It knows the defense: code and parameters, but no state, secret or random number of the running one.",
    "clone": "It knows what the attack's own clone answers at present.",
    "clean answers": "It is told the target's own answers: an upper bound that no attacker reaches, never ranked.",
}


def _recovery_traits(declared: "RecoveryTraits") -> list[str]:
    return [
        *([f"Made for: {declared.restores}."] if declared.restores else []),
        *(map(_KNOWLEDGE.__getitem__, declared.knows) if declared.knows else ["It sees the released answers alone."]),
        f"Queries charged per image: {declared.queries_per_image}.",
    ]


def _defense_traits(declared: "Traits") -> list[str]:
    sweep = ", ".join(map(str, declared.sweep))
    sentences = [
        f"Ranked among: {family(declared)} defenses.",
        "The released top class is the target's."
        if declared.argmax_preserving
        else "The released top class may differ from the target's.",
        "Asked twice, the same image may be answered differently." if declared.stochastic else "",
        "An answer may depend on the queries before it." if declared.stateful else "",
        "Answers are one-hot." if declared.labels_only else "",
        f"Needs: {', '.join(declared.needs)}." if declared.needs else "",
        f"Strength: {declared.knob}, swept over {sweep} (weakest first)." if declared.knob else "",
        f"What stays useful: {declared.preserves}" if declared.preserves else "",
        f"How to get around it: {declared.weakness}" if declared.weakness else "",
    ]
    return [sentence for sentence in sentences if sentence]
