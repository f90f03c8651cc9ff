"""`uvmsim models` and `uvmsim hardware`."""

import json

import pytest
from click.testing import CliRunner

from traces.errors import InputError
from uvmsim.commands.lists import hardware, models
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model


def run(command, *args):
    result = CliRunner().invoke(command, args, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_lists_name_every_preset():
    listed = run(models)
    assert all(name in listed for name in Model.list_presets())
    listed = run(hardware)
    assert all(name in listed for name in Hardware.list_presets())


def test_one_description_shows_numbers_and_sources():
    shown = run(models, "gpt-oss-120b")
    assert "63,374,323,968" in shown and "config.json" in shown
    shown = run(hardware, "h100")
    assert "54.7 GB/s" in shown and "measured" in shown and "estimate:" in shown


def test_json_is_one_deterministic_object():
    first = run(models, "--json")
    assert first == run(models, "--json")
    data = json.loads(first)["models"]
    assert set(data) == set(Model.list_presets())
    assert data["gpt-oss-120b"]["total_bytes"] == 63_374_323_968
    one = json.loads(run(models, "gpt-oss-120b", "--json"))
    assert one == data["gpt-oss-120b"]
    data = json.loads(run(hardware, "--json"))["hardware"]
    assert data["h100"] == json.loads(run(hardware, "h100", "--json"))
    assert data["h100"]["sources"]["copy_latency_ns"].startswith("measured")


def test_unknown_names_are_input_errors():
    for command in (models, hardware):
        with pytest.raises(InputError, match="unknown"):
            run(command, "nothing-like-it")


def test_a_gguf_file_can_be_described(tiny_gguf):
    shown = run(models, str(tiny_gguf))
    assert "experts a layer" in shown and "all weights" in shown
