"""``sim:`` URLs, keyword settings, and the errors a person can make in them."""

from __future__ import annotations

import msgspec
import pytest

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.simulator.settings import SimulatedModel, SimulatorSettings
from pytest_ollama_perf.simulator.url import URL_PARAMETERS, describe_settings, is_sim_url, parse_sim_url, read_settings


def test_a_bare_url_is_the_simulator_as_it_comes():
    assert parse_sim_url("sim:") == parse_sim_url("sim:?") == SimulatorSettings()


def test_every_setting_of_a_server_has_a_word_and_an_example_that_is_valid():
    assert {key.field for key in URL_PARAMETERS.values()} == set(SimulatorSettings.__struct_fields__)
    for name, key in URL_PARAMETERS.items():
        assert read_settings({name: key.example}) == parse_sim_url(f"sim:?{name}={key.example}")


def test_values_are_read_with_their_units():
    settings = parse_sim_url("sim:?slots=4&load_time=1.5s&overhead=300us&keep_alive=-1&cache=off&vram=0.5")
    assert (settings.slots, settings.load_time_s, settings.overhead_s) == (4, 1.5, 0.0003)
    assert (settings.keep_alive_s, settings.cache, settings.vram_share) == (-1.0, False, 0.5)


def test_tables_models_and_faults_are_read():
    settings = parse_sim_url("sim:?aggregate=1:123,2:184.5&models=tiny,big:70b&fault=busy@3+7&fault=slow:1.3@20-")
    assert settings.aggregate == ((1, 123.0), (2, 184.5))
    assert [model.full_name for model in settings.models] == ["tiny:latest", "big:70b"]
    assert settings.models[0].quantization == "F16"
    assert [fault.numbers for fault in settings.faults] == [(3, 7), ()]
    assert settings.faults[1].first == 20


def test_keywords_take_numbers_lists_and_models():
    settings = read_settings(
        {"tps": 50, "load_time_s": 2, "models": [SimulatedModel(name="a")], "fault": ["busy@1", "drop:2"]}
    )
    assert (settings.tps, settings.load_time_s, len(settings.faults)) == (50.0, 2.0, 2)
    assert read_settings({"aggregate": {1: 10, 4: 20}}).aggregate == ((1, 10.0), (4, 20.0))
    assert read_settings({"fault": "busy"}).faults == read_settings({"fault": ["busy"]}).faults


def test_what_is_asked_of_the_server_wins_over_what_its_own_models_have():
    assert {model.tps for model in parse_sim_url("sim:?tps=50").models} == {None}
    assert {model.tps for model in parse_sim_url("sim:?aggregate=1:50&models=tiny,x").models} == {None}
    assert parse_sim_url("sim:?slots=2&models=tiny").models[0].tps == 3840.0
    slow = SimulatedModel(name="slow", tps=3.0)
    assert read_settings({"tps": 50, "models": [slow]}).models == (slow,)


def test_settings_travel_as_json():
    settings = parse_sim_url("sim:?slots=2&fault=stall:2:5@p0.5&models=tiny,x")
    assert msgspec.json.decode(msgspec.json.encode(settings), type=SimulatorSettings) == settings


def test_only_the_scheme_makes_a_simulator():
    assert is_sim_url("sim:")
    assert is_sim_url(" SIM:?tps=3")
    assert not is_sim_url("http://sim:11434")
    assert not is_sim_url("simulator")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sim:?slot=4", "sim:?slot=4: unknown setting 'slot'; did you mean 'slots'?; valid: slots, tps, scaling,"),
        ("sim:?tps=fast", "simulator: tps='fast': expected a number"),
        ("sim:?tps=nan", "simulator: tps='nan': expected a number"),
        ("sim:?slots=1.5", "simulator: slots='1.5': expected a whole number"),
        ("sim:?slots=0", "simulator: slots 0 must be 1 or more"),
        ("sim:?tps=0", "simulator: tps 0 must be above 0"),
        ("sim:?tps=1&tps=2", "tps is given twice"),
        ("sim:?vram=2", "simulator: vram_share 2 must be between 0 and 1"),
        ("sim:?load_time=-1", "expected seconds, as a number or with a unit such as '300ms'"),
        ("sim:?cache=maybe", "simulator: cache='maybe': expected on or off"),
        ("sim:?version=9", "simulator: version '9' is not of the form 0.32.15"),
        ("sim:?aggregate=5", "expected streams:tokens/s, as in 1:123,2:184"),
        ("sim:?aggregate=4:10,2:20", "aggregate must give rising stream counts"),
        ("sim:?models=a,a:latest", "models must be one or more names, each once"),
        ("sim:?models=", "models must be one or more names, each once"),
        ("sim:?slots", "'sim:?slots': settings are written as sim:?slots=4&tps=80"),
        ("sim://host", "'sim://host': a simulator is written as sim: or sim:?slots=4&tps=80"),
    ],
)
def test_a_wrong_url_says_what_is_right(url, words):
    with pytest.raises(ConfigError) as caught:
        parse_sim_url(url)
    assert words in str(caught.value)


def test_an_unknown_capability_is_refused():
    with pytest.raises(ConfigError, match="capability 'singing'; valid: completion, embedding"):
        SimulatorSettings(models=(SimulatedModel(name="a", capabilities=("singing",)),))


def test_the_description_fits_on_a_line():
    settings = parse_sim_url("sim:?slots=4&tps=80&models=tiny&fault=busy@3")
    assert describe_settings(settings) == "Ollama 0.32.15, 4 slots, 80 tokens/s, fault busy; models tiny"
    assert "tokens/s by streams 1: 123, 2: 184" in describe_settings(parse_sim_url("sim:?aggregate=1:123,2:184"))
