"""Specs, hyperparameters and lookup: what every component has in common."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msbench.components import (
    GROUPS,
    Component,
    Paper,
    format_spec,
    load,
    load_class,
    names,
    origin,
    param,
    parse_spec,
    split_chain,
    working,
)
from msbench.errors import BadParameter, ContractViolation, MsbenchError, UnknownName, UsageError


@dataclass(kw_only=True)
class Tunable(Component):
    """One parameter of every kind."""

    kind: ClassVar[str] = "defense"

    count: int = param(3, "how many", ge=1, le=9)
    share: float = param(0.5, "how much", gt=0, lt=1)
    limit: int | None = param(None, "at most", ge=1)
    fancy: bool = param(False, "whether")
    mode: Literal["slow", "fast"] = param("slow", "how")
    text: str = param("", "what")


# ---------------------------------------------------------------------------------------------------- specs

KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
VALUES = st.from_regex(r"[A-Za-z0-9_.+\-/:=]{1,12}", fullmatch=True)
NAMES = st.from_regex(
    r"[a-z_]{1,8}|[a-z]{1,5}/[a-z]{1,5}\.py:[A-Z][a-z]{0,5}|[a-z]{1,4}\.[a-z]{1,4}:[A-Z]", fullmatch=True
)


@given(name=NAMES, params=st.dictionaries(KEYS, VALUES, max_size=4))
def test_specs_round_trip(name: str, params: dict[str, str]) -> None:
    assert parse_spec(format_spec(name, params)) == (name, params)


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("topk", ("topk", {})),
        (" topk:k=5 ", ("topk", {"k": "5"})),
        ("noise:scale=1e-3, seed = 4", ("noise", {"scale": "1e-3", "seed": "4"})),
        ("path/to/file.py:Mine", ("path/to/file.py:Mine", {})),
        ("path/to/file.py:Mine:strength=2,k=1", ("path/to/file.py:Mine", {"strength": "2", "k": "1"})),
        ("package.module:Mine:k=1", ("package.module:Mine", {"k": "1"})),
        ("imagefolder:path=/a/b:c=d,size=8", ("imagefolder", {"path": "/a/b:c=d", "size": "8"})),
    ],
)
def test_parsing(spec: str, parsed: tuple[str, dict[str, str]]) -> None:
    assert parse_spec(spec) == parsed


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("topk:k=5,k=6", "'k' is given twice in 'topk:k=5,k=6'"),
        ("topk:k=5,deep", "'deep' in 'topk:k=5,deep' is not key=value: write deep=VALUE"),
        ("topk:k=5,3", "'3' in 'topk:k=5,3' is not key=value"),
        ("topk:k=", "'k=' in 'topk:k=' is not key=value: write k=VALUE"),
    ],
)
def test_parameters_that_cannot_be_read(spec: str, words: str) -> None:
    with pytest.raises(BadParameter) as caught:
        parse_spec(spec)
    assert str(caught.value) == words


def test_an_empty_spec() -> None:
    with pytest.raises(UsageError, match="write NAME"):
        parse_spec("  ")


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("topk", ["topk"]),
        ("topk:k=5+rounding:decimals=2", ["topk:k=5", "rounding:decimals=2"]),
        ("topk:k=5 + rounding", ["topk:k=5", "rounding"]),
        ("noise:scale=1e+5+topk:k=3+./a.py:B", ["noise:scale=1e+5", "topk:k=3", "./a.py:B"]),
        ("dir+/x.py:A", ["dir+/x.py:A"]),
        ("c++/x.py:A", ["c++/x.py:A"]),
        ("here/a+b/c+d/x.py:A", ["here/a+b/c+d/x.py:A"]),
        ("./g+h.py:A:k=1+topk", ["./g+h.py:A:k=1", "topk"]),
        ("topk + dir+/x.py:A + /here/e+f/x.py:B", ["topk", "dir+/x.py:A", "/here/e+f/x.py:B"]),
        ("topk+/here/x.py:A", ["topk", "/here/x.py:A"]),
        ("topk:k=3+/here/x.py:A", ["topk:k=3", "/here/x.py:A"]),
        ("topkk+label_only", ["topkk", "label_only"]),
        ("topkk+./x.py:A", ["topkk", "./x.py:A"]),
    ],
)
def test_chains_split_at_plus_signs_but_not_inside_numbers_or_paths(spec: str, parts: list[str]) -> None:
    assert split_chain(spec) == parts


# ----------------------------------------------------------------------------------------------- parameters


def test_text_becomes_what_the_annotation_says() -> None:
    built = Tunable.from_params(
        {"count": "4", "share": "1e-2", "limit": "7", "fancy": "true", "mode": "fast", "text": "12"}
    )
    assert built.params() == {"count": 4, "share": 0.01, "limit": 7, "fancy": True, "mode": "fast", "text": "12"}
    assert [type(value) for value in built.params().values()] == [int, float, int, bool, str, str]


@pytest.mark.parametrize("text", ["none", "None", "NONE"])
def test_none_is_for_optional_parameters(text: str) -> None:
    assert Tunable.from_params({"limit": text}).limit is None
    assert Tunable.from_params({"text": text}).text == text
    with pytest.raises(BadParameter, match=f"count='{text}' is not usable"):
        Tunable.from_params({"count": text})


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"count": "0"}, "Tunable: count=0 is out of range: it must be ≥ 1"),
        ({"count": 10}, "Tunable: count=10 is out of range: it must be ≤ 9"),
        ({"share": "0"}, "Tunable: share=0.0 is out of range: it must be > 0"),
        ({"share": 1.0}, "Tunable: share=1.0 is out of range: it must be < 1"),
        ({"share": "nan"}, "share=nan is not usable: it must be a finite number"),
        ({"limit": "0"}, "limit=0 is out of range: it must be ≥ 1"),
        ({"count": "many"}, "Tunable: count='many' is not usable: Input should be a valid integer"),
        ({"count": 2.5}, "count=2.5 is not usable"),
        ({"share": "inf"}, "share=inf is not usable: it must be a finite number"),
        ({"fancy": "maybe"}, "fancy='maybe' is not usable"),
        ({"mode": "medium"}, "mode='medium' is not usable: Input should be 'slow' or 'fast'"),
        ({"bogus": 1}, "Tunable: unknown parameter 'bogus' (valid: count, share, limit, fancy, mode, text)"),
    ],
)
def test_unusable_values_are_shown_with_the_way_out(params: dict[str, object], words: str) -> None:
    with pytest.raises(BadParameter) as caught:
        Tunable.from_params(params)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_are_checked_from_python_too() -> None:
    with pytest.raises(BadParameter, match="count=0"):
        Tunable(count=0)


def test_a_component_without_parameters_says_so() -> None:
    with pytest.raises(BadParameter, match="none: it has no parameters"):
        load("recovery", "argmax:k=1")


@given(count=st.integers(1, 9), share=st.floats(1e-9, 0.999), limit=st.none() | st.integers(1), fancy=st.booleans())
def test_a_component_prints_as_the_spec_that_builds_it(
    count: int, share: float, limit: int | None, fancy: bool
) -> None:
    built = Tunable(count=count, share=share, limit=limit, fancy=fancy)
    name, params = parse_spec(str(built))
    assert name == "Tunable"
    assert Tunable.from_params(params) == built


def test_only_what_differs_from_the_defaults_is_printed() -> None:
    assert str(Tunable()) == "Tunable"
    assert str(Tunable(share=0.25)) == "Tunable:share=0.25"


def test_the_description_holds_all_parameters() -> None:
    described = load("defense", "topk:k=2").describe()
    assert described["name"] == "topk"
    assert described["version"] == "1"
    assert described["params"]["k"] == 2


@pytest.mark.parametrize(("venue", "kind"), [("A Conference", "@inproceedings{key2020,"), ("", "@misc{key2020,")])
def test_bibtex(venue: str, kind: str) -> None:
    text = Paper(key="key2020", title="T", authors="A and B", year=2020, venue=venue, arxiv="2001.00001").bibtex()
    assert text.splitlines()[0] == kind
    assert "  author = {A and B}," in text
    assert "  eprint = {2001.00001}," in text
    assert ("booktitle" in text) == bool(venue)
    assert text.count("{") == text.count("}")


# --------------------------------------------------------------------------------------------------- lookup


@pytest.mark.parametrize("kind", GROUPS)
def test_every_name_loads_and_carries_its_own_name(kind: str) -> None:
    for name, cls in working(kind):
        assert cls.kind == kind
        assert cls.label() == name
        assert cls.__doc__
        assert origin(kind, name)


def test_unknown_names_come_with_the_three_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        load("attack", "dualstudnet")
    assert str(caught.value).startswith("unknown attack 'dualstudnet': did you mean dualstudent, ")
    assert str(caught.value).count(",") == 2
    assert "msbench list attacks" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "spec", "item", "way_out"),
    [
        ("defense", "topk:k", "k", ": write k=VALUE"),
        ("defense", "topk:3", "3", ""),
        ("defense", "topk:k,3", "k", ": write k=VALUE"),
        ("defense", "topk:k,deep=1", "k", ": write k=VALUE"),
        ("defense", "topk:3=4", "3=4", ""),
        ("defense", "topk:", "", ""),
        ("recovery", "averaging:4", "4", ""),
    ],
)
def test_a_forgotten_key_or_value_of_a_known_name_is_not_taken_for_a_class(
    kind: str, spec: str, item: str, way_out: str
) -> None:
    with pytest.raises(BadParameter) as caught:
        load(kind, spec)
    assert str(caught.value) == f"{item!r} in {spec!r} is not key=value{way_out}"


PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar

from msbench import Defense, Traits, param

@dataclass(kw_only=True)
class Mine(Defense):
    """Mine."""

    strength: float = param(0.5, "how strong it is", ge=0)
    traits: ClassVar[Traits] = Traits(argmax_preserving=True)

    def release(self, probs, images):
        return probs

class Derived(Mine):
    """From mine."""

class Stranger:
    """No component."""

VALUE = 3
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    file = tmp_path / "plugin.py"
    file.write_text(PLUGIN)
    return file


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same as an importable module."""
    (tmp_path / "msbench_test_package").mkdir()
    (tmp_path / "msbench_test_package" / "module.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "msbench_test_package.module"
    for name in [name for name in sys.modules if name.startswith("msbench_test_package")]:
        del sys.modules[name]


def test_a_class_in_a_file(plugin: Path) -> None:
    built = load("defense", f"{plugin}:Mine")
    assert built.label() == "plugin.py:Mine"  # not the whole path, which is one machine's
    assert built.params() == {"strength": 0.5}
    assert load("defense", f"{plugin}:Mine:strength=2").params() == {"strength": 2.0}
    with pytest.raises(BadParameter, match="strength=-1"):
        load("defense", f"{plugin}:Mine:strength=-1")


def test_a_class_in_a_module(module: str) -> None:
    built = load("defense", f"{module}:Mine:strength=2")
    assert built.label() == f"{module}:Mine"
    assert built.params() == {"strength": 2.0}


def test_the_files_content_is_part_of_the_version(plugin: Path) -> None:
    first = load("defense", f"{plugin}:Mine").version
    assert first.startswith("1+")
    assert load("defense", f"{plugin}:Mine").version == first
    plugin.write_text(PLUGIN.replace("0.5", "0.25"))
    edited = load("defense", f"{plugin}:Mine")
    assert edited.version != first
    assert edited.params() == {"strength": 0.25}  # the version is that of the code that runs


def test_a_derived_class_does_not_inherit_the_loaded_name(plugin: Path) -> None:
    mine = load("defense", f"{plugin}:Mine")
    derived = load("defense", f"{plugin}:Derived")
    assert derived.label() == "plugin.py:Derived"
    assert derived.version == mine.version
    topk = load_class("defense", "topk")
    assert type("Another", (topk,), {}).label() == "Another"  # type: ignore[attr-defined]


def test_the_entry_points_name_goes_before_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = "msbench.attacks.recovery.argmax:Argmax"
    monkeypatch.delattr(load_class("recovery", spec), "name")  # as if nobody had asked for it yet
    assert load("recovery", spec).label() == spec
    assert load("recovery", "argmax").label() == "argmax"
    assert load("recovery", spec).label() == "argmax"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{folder}/nowhere.py:Mine", "nowhere.py' to load the defense from"),
        ("{folder}/plugin.py:Yours", "plugin.py defines no 'Yours'"),
        ("no_such_module_anywhere:Mine", "no module 'no_such_module_anywhere'"),
        ("no_such.module:Mine", "no module 'no_such.module'"),
        ("msbench.defenses.topk:Mine", "msbench.defenses.topk defines no 'Mine'"),
    ],
)
def test_what_is_missing_is_named(plugin: Path, spec: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load("defense", spec.format(folder=plugin.parent))
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["Stranger", "VALUE"])
def test_what_is_no_component_is_refused(plugin: Path, name: str) -> None:
    with pytest.raises(ContractViolation, match=r"does not derive from msbench\.Defense"):
        load("defense", f"{plugin}:{name}")


def test_a_component_of_another_kind_is_refused(plugin: Path) -> None:
    with pytest.raises(ContractViolation, match=r"does not derive from msbench\.Attack"):
        load("attack", f"{plugin}:Mine")


@pytest.mark.parametrize("code", ["1 / 0", "import no_such_module_anywhere", "def broken(:"])
def test_a_file_that_fails_to_import_is_named_and_can_be_mended(tmp_path: Path, code: str) -> None:
    file = tmp_path / "failing.py"
    file.write_text(code)
    with pytest.raises(ContractViolation, match=r"failing\.py.*cannot be imported: \w+Error: ") as caught:
        load("defense", f"{file}:Mine")
    assert isinstance(caught.value, MsbenchError)
    file.write_text(PLUGIN)
    assert load("defense", f"{file}:Mine").label() == "failing.py:Mine"


def test_names_are_sorted_and_of_their_kind() -> None:
    assert names("attack") == sorted(names("attack"))
    assert {"dualstudent", "dfme", "random_noise", "knockoff"} <= set(names("attack"))
    assert {"none", "argmax", "averaging"} <= set(names("recovery"))
