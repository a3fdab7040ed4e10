import os
import re
import stat
import subprocess
import sys

import pytest

from lightning_gpt.cli import main
from lightning_gpt.serving.tenants import TenantBook


def add(capsys, *args):
    main(["tenant", *map(str, args)])
    return capsys.readouterr().out.splitlines()[0]


def test_a_key_is_shown_once_and_opens_its_tenant(tmp_path, capsys, clean_process):
    path = tmp_path / "tenants.yaml"
    limits = ["--requests_per_minute", 60, "--burst", 5, "--tokens_per_day", 10000, "--models", "[tiny, big]"]
    key = add(capsys, "ada", "--file", path, *limits, "--admin")
    assert re.fullmatch(r"lgpt-[\w-]{43}", key)
    assert key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    book = TenantBook(path)
    tenant = book.authenticate(f"Bearer {key}")
    assert (tenant.name, tenant.requests_per_minute, tenant.burst, tenant.tokens_per_day) == ("ada", 60, 5, 10000)
    assert (tenant.models, tenant.admin, tenant.max_parallel) == (("tiny", "big"), True, None)
    second = add(capsys, "bob", "--file", path)
    assert book.refresh() is None
    assert book.authenticate(f"Bearer {key}").name == "ada"
    assert book.authenticate(f"Bearer {second}").name == "bob"
    assert os.listdir(tmp_path) == ["tenants.yaml"]


FORMS = {
    "comments": "# ours\ntenants:\n# first\n- name: ada # her\n  models: [a,\n    b]\n# z\n\nanonymous:\n  burst: 1\n",
    "indented": "anonymous: {}\ntenants:\n    - name: ada\n      key_hashes:\n        - " + "ab" * 32 + "\n    # end",
    "flow": "tenants: [{name: ada}]\nanonymous: {burst: 2}\n",
    "no list yet": "anonymous: {burst: 2}",
    "nothing": "",
    "null": "tenants:\nanonymous: {}\n",
    "empty": "tenants: []   # nobody\nanonymous: {}\n",
    "no newline": "tenants:\n  - name: ada\n    models: null",
}


@pytest.mark.parametrize("form", FORMS)
def test_what_people_wrote_stays(tmp_path, capsys, clean_process, form):
    path = tmp_path / "tenants.yaml"
    path.write_text(FORMS[form])
    path.chmod(0o640)
    before = TenantBook(path)
    key = add(capsys, "new", "--file", path, "--max_parallel", 2)
    after = TenantBook(path)
    assert after.authenticate(f"Bearer {key}").max_parallel == 2
    assert list(after.tenants) == [*before.tenants, "new"]
    assert all(after.tenants[name] == tenant for name, tenant in before.tenants.items())
    assert after.anonymous == before.anonymous
    assert re.findall("#.*", path.read_text()) == re.findall("#.*", FORMS[form])
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["ada"], "a tenant 'ada' is there already"),
        (["a b"], "name='a b': give 1 to 64 letters"),
        (["anonymous"], "is taken"),
        (["bob", "--tokens_per_day", "0"], "tokens_per_day=0: give a whole number, at least 1"),
        (["bob", "--requests_per_minute", "-1"], "requests_per_minute=-1.0: give a number above 0"),
        (["bob", "--burst", "many"], "burst"),
    ],
)
def test_mistakes_are_one_line_and_the_file_stays(tmp_path, capsys, clean_process, args, said):
    path = tmp_path / "tenants.yaml"
    path.write_text("tenants: [{name: ada}]\n")
    with pytest.raises(SystemExit) as stop:
        main(["tenant", *args, "--file", str(path)])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert path.read_text() == "tenants: [{name: ada}]\n"


def test_a_missing_directory_and_a_broken_file_are_named(tmp_path, capsys, clean_process):
    (tmp_path / "broken.yaml").write_text("tenants: {")
    for name, said in (("none/tenants.yaml", "there is no directory"), ("broken.yaml", "not YAML")):
        with pytest.raises(SystemExit):
            main(["tenant", "bob", "--file", str(tmp_path / name)])
        assert said in capsys.readouterr().err


def test_two_that_add_at_once_both_get_in_and_a_link_stays_one(tmp_path):
    (tmp_path / "real.yaml").write_text("tenants:\n")
    (tmp_path / "link.yaml").symlink_to("real.yaml")
    code = "import sys; from lightning_gpt.cli import main; main(['tenant', sys.argv[1], '--file', sys.argv[2]])"
    adding = [
        subprocess.Popen([sys.executable, "-c", code, name, str(tmp_path / "link.yaml")], stdout=subprocess.DEVNULL)
        for name in ("ada", "bob", "cyd")
    ]
    assert [one.wait() for one in adding] == [0, 0, 0]
    assert set(TenantBook(tmp_path / "real.yaml").tenants) == {"ada", "bob", "cyd"}
    assert (tmp_path / "link.yaml").is_symlink()
