"""Two equal questions have one answer, wherever they were made."""

import copy
import json
import pickle

import pytest
from click.testing import CliRunner

from traces.errors import InputError
from uvmsim.commands.compare import compare as command
from uvmsim.studies.compare import (
    DEFAULT_PAGE_POLICIES,
    DEFAULT_POLICIES,
    Options,
    compare,
    policies_of,
)

UVM = Options(mechanisms=("uvm",))


def names(options: Options) -> tuple[list[str], list[str]]:
    experts, pages = policies_of(options)
    return [p.name for p in experts], [p.name for p in pages]


@pytest.mark.parametrize(
    "options", [Options(), UVM, Options(mechanisms=("uvm", "expert-cache")), Options(policies=("lru",))]
)  # fmt: skip
def test_equal_options_ask_for_the_same_policies(options):
    for other in (
        pickle.loads(pickle.dumps(options)),
        copy.deepcopy(options),
        Options(**vars(options)),
    ):
        assert other == options
        assert names(other) == names(options)
        assert other.to_json() == options.to_json()


def test_the_defaults_named_one_by_one_are_named_policies():
    """By another object of the same names, or the same one: no difference."""
    for given in (DEFAULT_POLICIES, (*DEFAULT_POLICIES,)):
        options = Options(mechanisms=("uvm",), policies=given)
        assert options == Options(mechanisms=("uvm",), policies=DEFAULT_POLICIES)
        with pytest.raises(InputError, match="none of them is for --mechanism uvm"):
            policies_of(options)
    assert names(UVM) == ([], list(DEFAULT_PAGE_POLICIES))


def test_the_options_printed_are_those_of_ever():
    printed = {
        "hardware": "rtx5090", "slots": ["50%"], "mechanisms": ["expert-cache"],
        "policies": list(DEFAULT_POLICIES), "pool": "global", "unit": "event", "reset": "never",
        "write_back": False, "pageable": False, "limit": 800, "seed": 0, "threshold": 51,
        "engine": "fast",
    }  # fmt: skip
    done = CliRunner().invoke(command, ["--slots", "50%", "--limit", "800", "--json"])
    told = json.loads(done.stdout)["options"]
    assert told == printed
    same = compare(Options(slots=("50%",), limit=800)).to_json()["options"]
    assert json.dumps(same, sort_keys=True) == json.dumps(told, sort_keys=True)
    assert Options(mechanisms=("uvm",)).to_json()["policies"] == DEFAULT_POLICIES
