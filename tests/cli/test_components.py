"""``list``, ``show``, ``cite``, ``validate`` and ``info``."""

import dataclasses
import inspect
import json
import re
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from msbench import PROTOCOL
from msbench.benchmark.cli.wording import plain
from msbench.components import load, names

DEFENSE = '''
from dataclasses import dataclass
from typing import ClassVar

from msbench import Defense, Traits, param


@dataclass(kw_only=True)
class Mine(Defense):
    """A defense of my own."""

    strength: float = param(0.5, "how strong it is", ge=0, le=1)
    traits: ClassVar[Traits] = Traits(argmax_preserving=True)

    def release(self, probs, images):
        return RELEASED
'''


@pytest.fixture
def mine(tmp_path):
    """Writes a defense that releases an expression, and returns its spec."""

    def write(released):
        file = tmp_path / "mine.py"
        file.write_text(DEFENSE.replace("RELEASED", released))
        return f"{file}:Mine"

    return write


@pytest.mark.parametrize(
    ("plural", "kind"),
    [("attacks", "attack"), ("defenses", "defense"), ("recoveries", "recovery"), ("datasets", "dataset")],
)
def test_list_as_json_names_all(call, plural, kind):
    rows = json.loads(call("list", plural, "--json").stdout)
    assert [row["name"] for row in rows] == names(kind)
    assert all(row["summary"] and row["origin"].startswith("model-stealing-bench") for row in rows)


def test_list_with_a_pattern(call):
    [row] = json.loads(call("list", "attacks", "dfm?", "--json").stdout)
    assert row["threat_model"] == "data-free"
    assert row["paper"] == "Truong et al. 2021, arXiv 2011.14779"
    text = call("list", "attacks", "dfm?").stdout
    assert "2011.14779" in text
    assert "dualstudent" not in text


def test_list_of_recoveries_says_what_they_know_and_charge(call):
    rows = {row["name"]: row for row in json.loads(call("list", "recoveries", "--json").stdout)}
    assert rows["none"]["knows"] == rows["temperature"]["knows"] == []
    assert rows["bayes"]["knows"] == ["defense"]
    assert "clean answers" in rows["oracle_bayes"]["knows"]
    assert (rows["smoothing"]["queries_per_image"], rows["argmax"]["queries_per_image"]) == ("copies", "1")
    text = call("show", "recovery", "oracle_bayes").stdout
    assert "It knows the defense" in text
    assert "never ranked" in text
    assert "It sees the released answers alone." in call("show", "linear").stdout


def test_list_without_a_match_says_so(call):
    result = call("list", "defenses", "zz*")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "zz*" in result.stderr


def test_list_targets_on_a_fresh_machine(call, tmp_path):
    empty = {"MSBENCH_HOME": str(tmp_path)}
    listed = json.loads(call("list", "targets", "--json", **empty).stdout)
    assert {(row["trained"], row["seed"]) for row in listed} == {("msbench", seed) for seed in range(3)}
    assert "lenet5" in call("list", "targets", **empty).stdout
    assert call("target", "list", **empty).stdout == call("list", "targets", **empty).stdout


def test_list_of_an_unknown_kind(refused):
    assert "attacks" in refused("list", "attack")


def test_show(call):
    text = call("show", "topk").stdout
    assert "how many classes keep their probability" in text
    assert "The released top class is the target's." in text
    assert "≥ 1" in text


@pytest.mark.parametrize("words", [("defense", "none"), ("defense:none",)])
def test_show_of_a_shared_name(call, refused, words):
    assert "a defense and a recovery" in refused("show", "none")
    assert call("show", *words).stdout.startswith("none (defense")


def test_show_of_a_setting_tells_its_own_traits(call, refused):
    assert "Ranked among: randomized defenses." in call("show", "noise").stdout
    fixed = call("show", "defense", "noise:per_input=true").stdout
    assert fixed.startswith("noise:per_input=true (defense")
    assert "Ranked among: deterministic defenses." in fixed
    assert "slightly changed images" in fixed
    assert "k=0 is out of range" in refused("show", "topk:k=0")


def test_show_of_a_kind_alone(refused):
    assert "which defense? write defense NAME" in refused("show", "defense")


def test_show_of_a_parameter_that_may_be_none(call):
    assert re.search(r"epsilon +float or none +none +> 0", call("show", "noise").stdout)


def test_show_of_everything(call):
    for kind in ("attack", "defense", "recovery", "dataset"):
        for name in names(kind):
            result = call("show", kind, name)
            assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", names("defense"))
def test_a_defense_s_card_holds_all_that_one_chooses_by(call, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "400")  # each parameter in one line
    card = call("show", "defense", name).stdout
    defense = load("defense", name)
    assert inspect.getdoc(type(defense)) in card
    said = [line.strip() for line in card.splitlines()]
    traits = defense.traits
    assert f"What stays useful: {traits.preserves}" in said
    assert traits.preserves
    if name != "none":  # there is no way around the control
        assert f"How to get around it: {traits.weakness}" in said
        assert traits.weakness
    if traits.knob:
        assert any(line.startswith(f"Strength: {traits.knob}, ") for line in said)
    *_, table = card.rpartition("\nparameter ")
    hints = get_type_hints(type(defense))
    for field in dataclasses.fields(defense):
        (row,) = [line for line in table.splitlines() if line.startswith(f"{field.name} ")]
        assert field.metadata["doc"] in row
        assert all(f"{sign} {bound}" in row for sign, bound in field.metadata["bounds"].items())
        choices = get_args(hints[field.name]) if get_origin(hints[field.name]) is Literal else ()
        assert ", ".join(choices) in row
    if name in ("none", "noise", "temperature"):  # controls and a baseline, which no paper proposes
        assert defense.paper is None
    else:
        assert plain(defense.paper.title) in card
        assert f"{defense.paper.year}" in card.partition("\nPaper\n")[2]


@pytest.mark.parametrize(
    "words",
    [("topkk",), ("defence", "topk"), ("attack", "topk"), ("a", "b", "c"), ("attack", "nowhere.py:A")],
)
def test_show_of_nothing(refused, words):
    refused("show", *words)


def test_show_of_a_file(call, mine):
    text = call("show", "defense", mine("probs")).stdout
    assert "A defense of my own." in text
    assert "≥ 0, ≤ 1" in text


def test_cite(call):
    result = call("cite", "dfme", "attack:dfme", "none")
    assert result.stdout.count("@inproceedings{truong2021data,") == 1
    assert result.stderr.splitlines()[0].startswith("defense none has no paper")
    assert call("cite").stdout.startswith("@misc{msbench,")


def test_cite_of_nothing(refused):
    assert "did you mean dfme" in refused("cite", "dfmee")


def test_validate(call, mine):
    good = call("validate", "defense", mine("probs"))
    assert good.exit_code == 0, good.output
    assert "FAILED" not in good.stdout


def test_validate_of_a_broken_defense(call, mine):
    spec = mine("probs.log()")
    bad = call("validate", "defense", spec)
    assert bad.exit_code == 1
    assert "FAILED" in bad.stdout
    checks = json.loads(call("validate", "defense", spec, "--json").stdout)
    assert any(not check["passed"] and check["detail"] for check in checks)


def test_validate_of_nothing(refused):
    assert "did you mean topk" in refused("validate", "defense", "topkk")
    assert "recovery" in refused("validate", "recovery", "none")


def test_info(call, tmp_path):
    info = json.loads(call("info", "--json", MSBENCH_STORE="here", MSBENCH_DATA="there").stdout)
    assert info["msbench"]["protocol"] == PROTOCOL
    assert info["versions"]["torch"]
    assert info["paths"]["records"] == str(tmp_path / "here")
    assert info["paths"]["data sets"] == "there"
    assert PROTOCOL in call("info").stdout
