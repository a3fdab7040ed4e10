from lightning_gpt.cli.parsing import with_bare_flags, with_nulls_as_config


def command(name: str, quick: bool = False, other: "bool" = True) -> None:
    """A verb."""


def test_a_boolean_option_alone_is_true():
    assert with_bare_flags(command, ["--quick", "x"]) == ["--quick", "true", "x"]
    assert with_bare_flags(command, ["x", "--other", "--quick"]) == ["x", "--other", "true", "--quick", "true"]
    given = ["x", "--quick", "False", "--other=true", "--name", "yes"]
    assert with_bare_flags(command, given) == given


def test_null_for_a_part_of_a_class_goes_through_a_configuration():
    given = ["-c", "x.yaml", "--model.init_args.config.moe", "null", "--data.block_size=null", "--trainer.x", "null"]
    assert with_nulls_as_config(given) == [
        *("-c", "x.yaml"),
        *("-c", "{model: {init_args: {config: {moe: null}}}}"),
        *("-c", "{data: {init_args: {block_size: null}}}"),
        *("--trainer.x", "null"),
    ]
    assert with_nulls_as_config(["--model.x"]) == ["--model.x"]


def test_a_list_of_positionals_is_said_word_by_word():
    from lightning_gpt.cli.parsing import with_lists

    def compare(runs: list[str], metric: str = "val/loss") -> None: ...

    def one(path: str) -> None: ...

    said = ["a", "b c", "--metric", "x"]
    assert with_lists(compare, said) == ['["a", "b c"]', "--metric", "x"]
    assert with_lists({"compare": compare, "one": one}, ["compare", *said])[1] == '["a", "b c"]'
    for untouched in (["one", "a"], ["compare"], ["compare", "[a, b]"], ["--help"]):
        assert with_lists({"compare": compare, "one": one}, untouched) == untouched
