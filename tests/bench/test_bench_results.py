"""results.json: what is written is read back; what is not a result is refused."""

import json

import pytest

from attnforge.bench.results import BadResultsError, read_results, write_results
from attnforge.codegen import Pass
from tests.bench.invented_results import make_results


def test_round_trip(tmp_path):
    results = make_results(lambda pass_, cell, name: None if name == "fa4" and pass_ is Pass.BACKWARD else 100.0)
    path = tmp_path / "new" / "results.json"
    write_results(results, path)
    assert read_results(path) == results


def test_the_file_is_plain_json_with_every_number(tmp_path):
    write_results(make_results(), tmp_path / "results.json")
    plain = json.loads((tmp_path / "results.json").read_bytes())
    cell = plain["cells"][0]
    assert (cell["pass"], cell["head_dim"], cell["seqlen"], cell["causal"]) == ("forward", 64, 1024, False)
    assert cell["outcomes"]["attnforge"]["type"] == "measurement"
    assert cell["outcomes"]["attnforge"]["tflops"] == 450.0
    assert cell["decision"]["kind"] == "exact"
    assert plain["environment"]["before"]["sm_mhz"] == 1980


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda plain: plain.pop("cells"), "cells"),
        (lambda plain: plain["cells"][0].update(speed=3), "speed"),
        (lambda plain: plain["cells"][0].update(seqlen="long"), "seqlen"),
        (lambda plain: plain.update(format=99), "format is 99"),
    ],
)
def test_a_damaged_file_is_refused_by_name_and_field(tmp_path, change, reason):
    path = tmp_path / "results.json"
    write_results(make_results(), path)
    plain = json.loads(path.read_bytes())
    change(plain)
    path.write_text(json.dumps(plain))
    with pytest.raises(BadResultsError, match=reason) as refused:
        read_results(path)
    assert str(path) in str(refused.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadResultsError, match=r"absent\.json"):
        read_results(tmp_path / "absent.json")
