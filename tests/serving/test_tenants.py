import os
import random

import pytest
import yaml

from lightning_gpt.serving.errors import ApiError
from lightning_gpt.serving.tenants import TenantBook, key_hash, new_key


def write(path, content):
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_a_key_opens_its_own_tenant_and_no_other(tmp_path):
    keys = {name: new_key() for name in ("ada", "bob", "cyd")}
    entries = [{"name": name, "key_hashes": [hashed]} for name, (_, hashed) in keys.items()]
    second, hashed = new_key()
    entries[1]["key_hashes"].append(hashed.upper())
    book = TenantBook(write(tmp_path / "tenants.yaml", {"tenants": entries}))
    for name, (key, _) in keys.items():
        assert book.authenticate(f"Bearer {key}").name == name
        assert book.authenticate(f"bearer  {key} ").name == name
    assert book.authenticate(f"Bearer {second}").name == "bob"
    key = keys["ada"][0]
    draw = random.Random(0)
    wrong = [None, "", "Bearer", "Bearer ", key, f"Basic {key}", f"Bearer {key}x", f"Bearer {keys['ada'][1]}"]
    wrong += [f"Bearer {key[:-1]}", "Bearer " + "k" * 10**6, "Bearer \udcff", f"Bearer {key} {key}"]
    for _ in range(100):
        place = draw.randrange(len(key))
        wrong.append(f"Bearer {key[:place]}{'é' if key[place] == 'a' else 'a'}{key[place + 1 :]}")
    for header in wrong:
        if header == f"Bearer {key}":
            continue
        with pytest.raises(ApiError) as refused:
            book.authenticate(header)
        assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")
        assert key not in refused.value.message


def test_keys_are_random_and_long_enough():
    keys = {new_key()[0] for _ in range(1000)}
    assert len(keys) == 1000
    assert all(key.startswith("lgpt-") and len(key) == 5 + 43 for key in keys)
    key, hashed = new_key()
    assert key_hash(key) == hashed
    assert len(hashed) == 64


def test_without_a_file_everybody_is_served_and_with_one_only_who_has_a_key_or_an_anonymous_entry(tmp_path):
    assert TenantBook(None).authenticate("Bearer EMPTY").name == "anonymous"
    assert TenantBook(None).authenticate(None).requests_per_minute is None
    assert not TenantBook(None).authenticate(None).admin
    book = TenantBook(write(tmp_path / "a.yaml", {"anonymous": {"requests_per_minute": 3, "models": ["tiny"]}}))
    tenant = book.authenticate(None)
    assert (tenant.name, tenant.requests_per_minute) == ("anonymous", 3)
    assert tenant.may_use("tiny")
    assert not tenant.may_use("big")
    assert book.names == {"anonymous"}
    with pytest.raises(ApiError):
        book.authenticate("Bearer EMPTY")
    with pytest.raises(ApiError):
        TenantBook(write(tmp_path / "b.yaml", "")).authenticate(None)


HASH = "ab" * 32


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("tenants: [", "not YAML"),
        ("tenants: \0", "control characters are not allowed"),
        ("- a", "a mapping with `tenants:`"),
        ({"tenant": []}, "tenant is unknown: did you mean 'tenants'?"),
        ({"tenants": {"a": 1}}, "tenants is a dict: give a list"),
        ({"tenants": ["a"]}, "tenants[0] has no name"),
        ({"tenants": [{"name": 5}]}, "tenants[0].name=5: give 1 to 64 letters"),
        ({"tenants": [{"name": "a b"}]}, "tenants[0].name='a b'"),
        ({"tenants": [{"name": "anonymous"}]}, "is taken"),
        ({"tenants": [{"name": "a"}, {"name": "a"}]}, "tenants[1].name='a' is taken"),
        ({"tenants": [{"name": "a", "request_per_minute": 1}]}, "did you mean 'requests_per_minute'?"),
        ({"tenants": [{"name": "a", "zzz": 1}]}, "tenants[0].zzz is unknown: known are name,"),
        ({"tenants": [{"name": "a", "requests_per_minute": 0}]}, "requests_per_minute=0: give a number above 0"),
        ({"tenants": [{"name": "a", "requests_per_minute": True}]}, "requests_per_minute=True"),
        ({"tenants": [{"name": "a", "requests_per_minute": float("nan")}]}, "requests_per_minute=nan"),
        ({"tenants": [{"name": "a", "tokens_per_day": "9"}]}, "tokens_per_day='9': give a whole number"),
        ({"tenants": [{"name": "a", "max_parallel": 0}]}, "max_parallel=0"),
        ({"tenants": [{"name": "a", "burst": 1.5}]}, "burst=1.5"),
        ({"tenants": [{"name": "a", "priority": None}]}, "priority=None"),
        ({"tenants": [{"name": "a", "admin": "yes"}]}, "admin='yes': give true or false"),
        ({"tenants": [{"name": "a", "models": "tiny"}]}, "models='tiny': give a list"),
        ({"tenants": [{"name": "a", "key_hashes": ["lgpt-x"]}]}, "never the keys themselves"),
        ({"tenants": [{"name": "a", "key_hashes": HASH}]}, "give a list of SHA-256"),
        ({"tenants": [{"name": "a", "key_hashes": [HASH]}, {"name": "b", "key_hashes": [HASH]}]}, "also of a"),
        ({"anonymous": {"key_hashes": [HASH]}}, "anonymous.key_hashes means nothing"),
        ({"anonymous": [1]}, "anonymous is a list"),
    ],
)
def test_a_wrong_file_is_named_with_field_and_mend_in_one_line(tmp_path, content, said):
    path = write(tmp_path / "tenants.yaml", content)
    with pytest.raises(ValueError, match=r"tenants\.yaml") as error:
        TenantBook(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ValueError, match="lightning-gpt tenant NAME --file"):
        TenantBook(tmp_path / "tenants.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read"):
        TenantBook(tmp_path / "binary.yaml")


def test_a_changed_file_is_followed_and_a_bad_one_reported_once(tmp_path):
    path = write(tmp_path / "tenants.yaml", {"tenants": [{"name": "a", "tokens_per_day": 5}]})
    book = TenantBook(path)
    assert book.refresh() is None

    def replace(content):
        os.replace(write(tmp_path / "new.yaml", content), path)

    replace({"tenants": [{"name": "a", "tokens_per_day": 6}]})
    assert book.refresh() is None
    assert book.tenants["a"].tokens_per_day == 6
    replace({"tenants": [{"name": "a", "tokens_per_day": -1}]})
    assert "tokens_per_day=-1" in book.refresh()
    assert book.refresh() is None
    assert book.tenants["a"].tokens_per_day == 6
    path.unlink()
    assert "stay as they were" in book.refresh()
    assert book.refresh() is None
    assert book.tenants["a"].tokens_per_day == 6
    replace({"tenants": [{"name": "b"}]})
    assert book.refresh() is None
    assert book.names == {"b"}
