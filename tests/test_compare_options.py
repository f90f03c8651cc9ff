"""Two equal questions have one answer, wherever they were made."""

import copy
import json
import pickle

import pytest
from click.testing import CliRunner

from traces.errors import InputError
from uvmsim.commands.compare import compare as command
from uvmsim.policies.kinds import EXPERTS, PAGES
from uvmsim.studies.choice import policies_for
from uvmsim.studies.compare import compare
from uvmsim.studies.scenario import Scenario

UVM = Scenario(mechanisms=("uvm",))


def names(scenario: Scenario) -> tuple[list[str], list[str]]:
    chosen = policies_for(scenario.mechanisms or ("expert-cache",), scenario.policies)
    return tuple([p.name for p in chosen.get(noun, [])] for noun in ("expert", "page"))


@pytest.mark.parametrize(
    "options",
    [Scenario(), UVM, Scenario(mechanisms=("uvm", "expert-cache")), Scenario(policies=("lru",))],
)  # fmt: skip
def test_equal_options_ask_for_the_same_policies(options):
    for other in (
        pickle.loads(pickle.dumps(options)),
        copy.deepcopy(options),
        Scenario(**vars(options)),
    ):
        assert other == options
        assert names(other) == names(options)
        assert other.to_json() == options.to_json()


def test_the_defaults_named_one_by_one_are_named_policies():
    """By another object of the same names, or the same one: no difference."""
    for given in (EXPERTS.defaults, (*EXPERTS.defaults,)):
        options = Scenario(mechanisms=("uvm",), policies=given)
        assert options == Scenario(mechanisms=("uvm",), policies=EXPERTS.defaults)
        with pytest.raises(InputError, match="none of them is for `mechanisms` uvm"):
            names(options)
    assert names(UVM) == ([], list(PAGES.defaults))


def test_the_options_printed_are_those_of_ever():
    printed = {
        "hardware": "rtx5090", "slots": ["50%"], "mechanisms": ["expert-cache"],
        "policies": list(EXPERTS.defaults), "pool": "global", "unit": "event", "reset": "never",
        "write_back": False, "pageable": False, "limit": 800, "seed": 0, "threshold": 51,
        "engine": "fast",
    }  # fmt: skip
    done = CliRunner().invoke(command, ["--slots", "50%", "--limit", "800", "--json"])
    told = json.loads(done.stdout)["options"]
    assert told == printed
    same = compare(Scenario(slots=("50%",), limit=800)).to_json()["options"]
    assert json.dumps(same, sort_keys=True) == json.dumps(told, sort_keys=True)
    uvm = Scenario(mechanisms=("uvm",), limit=8, vram="1GiB")
    assert compare(uvm).to_json()["options"]["policies"] == EXPERTS.defaults
