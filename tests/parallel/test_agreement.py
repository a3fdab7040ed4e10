"""Ranks that were not started alike are told apart before they train."""

import threading

from torch.distributed import HashStore

from lightning_gpt.parallel.agreement import check_agreement, code_fingerprint, must_agree, summary, versions


def meet(*facts: dict) -> list[str]:
    """What each of the ranks with these facts is told, each in a thread of its own."""
    store, told = HashStore(), ["nothing"] * len(facts)

    def ask(rank: int) -> None:
        try:
            check_agreement(store, rank, len(facts), facts[rank])
            told[rank] = ""
        except ValueError as error:
            told[rank] = str(error)

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in range(len(facts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return told


def test_ranks_that_agree_hear_nothing():
    facts = {"data.batch_size": 4, "model.betas": (0.9, 0.95)}
    assert meet(facts, dict(facts), dict(facts)) == ["", "", ""]


def test_all_ranks_hear_which_one_differs_and_in_what():
    same = {"data.batch_size": 2, "version of torch": "2.15.0"}
    line = "ranks were not started alike: rank 1 has data.batch_size=4, rank 0 has 2"
    assert meet(same, same | {"data.batch_size": 4}, same) == [line] * 3


def test_what_only_one_rank_has_differs_too():
    (line, _) = meet({}, {"model.init_from": "here"})
    assert line.endswith("rank 1 has model.init_from=here, rank 0 has nothing")
    (line, _) = meet({"version of peft": "0.21"}, {})
    assert line.endswith("rank 1 has version of peft=nothing, rank 0 has 0.21")


def test_many_differences_stay_one_line():
    lines = [f"rank {rank} has seed_everything=1, rank 0 has 2" for rank in range(1, 64)]
    lines += [f"rank 5 has data.{name}=1, rank 0 has 2" for name in "abcde"]
    text = summary(lines)
    assert "\n" not in text
    assert "rank 1 has seed_everything=1, rank 0 has 2 (and 62 more ranks); rank 5 has data.a=1" in text
    assert text.endswith("; and 3 more differences")


def test_what_belongs_to_a_machine_may_differ():
    settings = {"trainer.devices": 2, "data.num_workers": 4, "progress.enabled": True, "data.batch_size": 2}
    assert must_agree(settings) == {"data.batch_size": 2}


def test_versions_and_code_are_compared():
    found = versions()
    assert {"python", "version of torch", "version of lightning", "version of lightning_gpt"} <= found.keys()
    assert found["code of lightning_gpt"] == code_fingerprint()
    assert len(code_fingerprint()) == 12


def test_ranks_with_other_settings_do_not_train(recipe, processes, tmp_path):
    def start(rank: int) -> None:
        from lightning_gpt.cli import main

        command = ["fit", "-c", recipe, "--trainer.devices", 2, "--trainer.strategy", "ddp"]
        main([str(word) for word in command] + ["--data.batch_size", str(2 + 2 * rank)])

    outcomes = processes(2, start, timeout=60, check=False)
    assert all(outcome.code == 1 for outcome in outcomes)
    text = "".join(outcome.text for outcome in outcomes)
    line = "lightning-gpt: error: ranks were not started alike: rank 1 has data.batch_size=4, rank 0 has 2\n"
    assert text.count("error") == 1
    assert line in text
    assert not list(tmp_path.glob("runs/**/metrics.jsonl"))
