from lightning_gpt.cli.parsing import with_bare_flags


def command(name: str, quick: bool = False, other: "bool" = True) -> None:
    """A verb."""


def test_a_boolean_option_alone_is_true():
    assert with_bare_flags(command, ["--quick", "x"]) == ["--quick", "true", "x"]
    assert with_bare_flags(command, ["x", "--other", "--quick"]) == ["x", "--other", "true", "--quick", "true"]
    given = ["x", "--quick", "False", "--other=true", "--name", "yes"]
    assert with_bare_flags(command, given) == given
