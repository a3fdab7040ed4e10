import pytest

from lightning_gpt.experiments.settings import lookup, nested, overlaid, read_yaml


def test_dotted_keys_nest_and_the_later_wins():
    assert nested({"a.b": 1, "a.c.d": 2, "e": 3}) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert nested({"a": 1, "a.b": 2}) == {"a": {"b": 2}}


def test_overlay_merges_mappings_only():
    below = {"a": {"b": 1, "c": [1, 2]}, "d": 4}
    assert overlaid(below, {"a": {"c": [3]}, "d": {"e": 5}}) == {"a": {"b": 1, "c": [3]}, "d": {"e": 5}}
    assert below == {"a": {"b": 1, "c": [1, 2]}, "d": 4}
    assert lookup(below, "a.b") == 1
    assert lookup(below, "a.x.y", "none") == "none"


def test_numbers_in_scientific_notation_are_numbers(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("{a: 1e-3, b: 2.4e12, c: 1.0e-3, d: 1e, e: 12, f: 'x1e3'}")
    assert read_yaml(path) == {"a": 1e-3, "b": 2.4e12, "c": 1e-3, "d": "1e", "e": 12, "f": "x1e3"}


@pytest.mark.parametrize("text, message", [("[1]", "holds no settings"), ("a: [", "is not YAML")])
def test_other_files_are_refused(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match="cannot be read"):
        read_yaml(tmp_path / "b.yaml")
