from lightning_gpt.cli.command_line import command_line


def verb(runs: list[str], place: str, rate: float = 0.1, name: str | None = None, quiet: bool = False) -> None: ...


def test_only_what_was_said_is_shown():
    values = {"runs": ["a b", "c"], "place": "d", "rate": 1e21, "name": None, "quiet": True, "other": 3}
    assert command_line("plan verb", verb, values) == "lightning-gpt plan verb 'a b' c d --rate 1e+21 --quiet"
    values |= {"rate": 0.1, "name": "x*", "quiet": False}
    assert command_line("verb", verb, values) == "lightning-gpt verb 'a b' c d --name 'x*'"
