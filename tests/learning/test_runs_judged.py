"""Exercises and milestones that ask for runs, experiments and services: judged on written-out ones."""

import http.server
import json
import threading
from pathlib import Path

import pytest
import yaml
from judged import judged, named

from lightning_gpt.learning.curves import planted_curve

pytestmark = pytest.mark.slow


def nested(settings: dict) -> dict:
    tree: dict = {}
    for name, value in settings.items():
        *groups, last = name.split(".")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return tree


@pytest.fixture
def run(tmp_path):
    """run("name", rows or final values, settings): a run directory as `fit` leaves it."""

    def make(name: str, rows: list[dict] | dict, status: str = "done", **settings) -> str:
        place = tmp_path / name / "version_0"
        place.mkdir(parents=True)
        if isinstance(rows, dict):
            rows = [{"step": rows.get("step", 100)} | {key: value for key, value in rows.items() if key != "step"}]
        (place / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        dotted = {key.replace("__", "."): value for key, value in settings.items()}
        (place / "config.yaml").write_text(yaml.safe_dump(nested(dotted)))
        (place / "run.json").write_text(json.dumps({"format": 1, "status": status}))
        return str(tmp_path / name)

    return make


@pytest.fixture
def study(tmp_path):
    """study({variant: [losses]}, ...): a folder with results.json."""

    def make(values: dict[str, list[float]], name: str = "study", metric: str = "val/loss", **content) -> str:
        cells = [
            {"variant": variant, "seed": seed, "status": "done", "final": {metric: loss}}
            for variant, losses in values.items()
            for seed, loss in enumerate(losses, 1)
        ]
        about = {
            "expectation": "a wider one is better by a little",
            "equal": {"parameters": 0.01},
            "question": "Is it?",
        }
        variants = {variant: {"n": 1} for variant in values}
        whole = about | {"metrics": [metric], "variants": variants, "cells": cells} | content
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(whole))
        return str(tmp_path / name)

    return make


def kept(tmp_path: Path, name: str, content: dict) -> str:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path.parent)


def said(number: str, name: str, **answer) -> str:
    return judged(named(number, name), answer) or "right"


def test_accumulation(run):
    both = {"trainer__precision": "32-true"}
    small = run("a", {"val/loss": 2.5000001}, trainer__accumulate_grad_batches=4, data__batch_size=3, **both)
    large = run("b", {"val/loss": 2.5}, trainer__accumulate_grad_batches=1, data__batch_size=12, **both)
    other = run("c", {"val/loss": 2.5}, trainer__accumulate_grad_batches=1, data__batch_size=12, seed=3, **both)
    off = run("d", {"val/loss": 2.51}, trainer__accumulate_grad_batches=1, data__batch_size=12, **both)
    short = run("e", {"step": 9, "val/loss": 2.5}, data__batch_size=12, trainer__accumulate_grad_batches=1, **both)
    assert said("01", "accumulation", accumulated=small, large=large) == "right"
    assert "was trained with trainer.accumulate_grad_batches=1" in said(
        "01", "accumulation", accumulated=large, large=large
    )
    assert "the runs differ in seed too" in said("01", "accumulation", accumulated=small, large=other)
    assert "is too small, by 0.4%" in said("01", "accumulation", accumulated=small, large=off)
    assert "has 9 steps, at least 100" in said("01", "accumulation", accumulated=small, large=short)
    assert said("01", "accumulation", large=large) == "accumulated: not filled in yet"
    assert "does not exist, seen from" in said("01", "accumulation", accumulated="runs/none", large=large)


def test_memory(run):
    settings = {"data__block_size": 256, "data__batch_size": 512}
    before = run("a", {"memory/peak_gib": 4.0, "speed/tokens_per_second": 100.0}, **settings)
    after = run("b", {"memory/peak_gib": 2.0, "speed/tokens_per_second": 80.0}, **settings)
    full = run("full", {"memory/peak_gib": 2.0, "speed/tokens_per_second": 80.0}, **settings)
    record = Path(full, "version_0", "run.json")
    record.write_text(json.dumps({"format": 1, "status": "done", "peak_memory_bytes": 4 << 30}))
    assert said("01", "forecast", run=before, predicted_gib=4.2) == "right"
    assert "20% away" in said("01", "forecast", run=before, predicted_gib=3.2)
    answer = {"before": before, "after": after, "levers": ["one", "two", "three"], "speed_lost": 0.2}
    assert said("01", "levers", **answer) == "right"
    assert "pull harder" in said("01", "levers", **answer | {"after": before})
    assert "pull harder" in said("01", "levers", **answer | {"after": full})  # the last validation took as much again
    assert said("01", "forecast", run=full, predicted_gib=4.2) == "right"
    assert "name three" in said("01", "levers", **answer | {"levers": ["one"]})
    assert "speed_lost: 0.70" in said("01", "levers", **answer | {"speed_lost": 0.7})


def test_sick_runs_and_mended_ones(run):
    planted = {kind: planted_curve(kind) for kind in ("rate_too_low", "rate_too_high", "healthy", "oscillating_loss")}
    settings = {"trainer__max_steps": 600}
    low, high, good, swings = (run(kind, rows, **settings) for kind, rows in planted.items())
    assert said("03", "rates", low=low, middle=good, high=high) == "right"
    assert "low: diagnose says healthy" in said("03", "rates", low=good, middle=good, high=high)
    assert "is not healthy: lightning-gpt diagnose" in said("03", "rates", low=low, middle=swings, high=high)
    mended = {f"{name}_mended": good for name in ("too_high", "small_batch", "by_heart")}
    assert said("04", "mend", too_high=high, small_batch=swings, by_heart=low, **mended) == "right"
    assert "make it sick first" in said("04", "mend", too_high=good, small_batch=swings, by_heart=low, **mended)
    deep = run("post", planted["healthy"], model__config__norm_place="post", model__config__n_layer=12, **settings)
    assert said("05", "post_norm", run=deep) == "right"
    assert "norm_place=None, asked for is post" in said("05", "post_norm", run=good)


def test_training(run, study):
    rows = [{"step": 10, "optim/gradient_norm": 1.0}, {"step": 20, "optim/gradient_norm": 9.0}]
    bare = run("bare", rows, trainer__gradient_clip_val=None)
    warm = run("warm", rows, model__schedule__warmup_steps=100)
    assert said("03", "clipping", without_clipping=bare, with_warmup=warm, largest_norm_at=20) == "right"
    assert "largest_norm_at: 10" in said("03", "clipping", without_clipping=bare, with_warmup=warm, largest_norm_at=10)
    losses = [{"step": 100, "train/loss": 1.5, "val/loss": 1.6}, {"step": 200, "train/loss": 0.9, "val/loss": 1.7}]
    stone, stopped = run("stone", losses, data__data_dir="data/shakespeare_char"), run("s", losses, "interrupted")
    assert said("03", "milestone", run=stone, val_turned_at=100, ship="best") == "right"
    assert "'last' is wrong" in said("03", "milestone", run=stone, val_turned_at=100, ship="last")
    assert "is interrupted: let it finish" in said("03", "milestone", run=stopped, val_turned_at=100, ship="best")
    timed = study({"muon": [1.0, 1.1, 1.0], "adamw": [1.2, 1.2, 1.3]}, budget="60 s of training")
    assert said("03", "seconds", experiment=timed, winner="muon") == "right"
    assert "'adamw' is wrong" in said("03", "seconds", experiment=timed, winner="adamw")
    assert said("milestones", "model", run=stone) == "right"
    assert "not on Shakespeare" in said("milestones", "model", run=bare)


def test_experiments(study, tmp_path):
    base, other = [2.0, 2.1, 2.05, 2.2, 2.1], [1.95, 2.06, 2.0, 2.16, 2.05]
    five = study({"a": base, "b": other})
    assert said("04", "own", experiment=five) == "right" == said("07", "improvement", experiment=five)
    assert said("milestones", "improvement", experiment=five) == "right"
    hasty = study({"a": base, "b": other}, "hasty", expectation="better")
    assert "has no expectation" in said("04", "own", experiment=hasty)
    wild = study({"a": base, "b": other}, "wild", variants={"a": {}, "b": {"x": 1, "y": 2}})
    assert "change one thing at a time" in said("04", "own", experiment=wild)
    held = {"a": {}, "b": {"model.init_args.config.n_kv_head": 1, "model.init_args.config.ffn_hidden": 608}}
    assert said("07", "improvement", experiment=study({"a": base, "b": other}, "held", variants=held)) == "right"
    assert "b: 2" in said("04", "own", experiment=study({"a": base, "b": other[:2]}, "few"))
    free = study({"a": base, "b": other}, "free", equal=None)
    assert "does not hold parameters equal" in said("04", "own", experiment=free)
    assert "no results.json" in said("04", "own", experiment=str(tmp_path))
    eight = study({"a": [*base, 2.0, 2.1, 2.3], "b": [*other, 1.96, 2.04, 2.26]}, "eight")
    answer = {"experiment": eight, "variant": "b", "deviation": 0.00744, "pairs_needed": 3}
    assert "pairs_needed" in said("04", "pairs", **answer | {"pairs_needed": 300})
    assert said("04", "pairs", **answer) == "right"
    assert "a is the reference" in said("04", "pairs", **answer | {"variant": "a"})
    place = kept(tmp_path, "range/lr_range.json", {"command": "... --model.config.position rotary", "steepest": 6e-4})
    assert said("04", "range", range=place, predicted_steepest=1e-3, steepest=6e-4) == "right"
    assert "steepest: 0.001 is too large" in said("04", "range", range=place, predicted_steepest=1e-3, steepest=1e-3)


def test_heads(study):
    values = {
        "1-head": [2.0] * 3,
        "2-heads": [1.9, 1.91, 1.92],
        "4-heads": [1.8, 1.9, 1.7],
        "8-heads": [1.79, 1.92, 1.7],
    }
    place = study(values)
    best = "4-heads" if sum(values["4-heads"]) < sum(values["8-heads"]) else "8-heads"
    assert said("05", "eight_heads", experiment=place, best=best, distinguishable=False) == "right"
    assert "look at the interval" in said("05", "eight_heads", experiment=place, best=best, distinguishable=True)
    assert "say yes or no" in said("05", "eight_heads", experiment=place, best=best)


def test_a_head_that_looks_back(tiny_model):
    answers = [said("05", "head", run=str(tiny_model), layer=layer, head=head) for layer in (0, 1) for head in (0, 1)]
    assert "right" in answers
    assert "there are layers 0 to 1 and heads 0 to 1" in said("05", "head", run=str(tiny_model), layer=2, head=0)


def test_scaling(run, study, tmp_path):
    names = {"name": "d6w192-1M"}, {"name": "d6w192-2M"}
    predictions = [
        names[0] | {"low": 2.0, "high": 2.2, "measured": 2.1, "loss": 2.05},
        names[1] | {"low": 2, "high": 3, "measured": 4, "loss": 3},
    ]
    place = kept(tmp_path, "fit/fit.json", {"command": "plan fit --hold_out 'd6*'", "predictions": predictions})
    assert said("06", "held_out", fit=place, inside=1, predicted_losses_are="too low") == "right"
    assert "inside: 2 is too large" in said("06", "held_out", fit=place, inside=2, predicted_losses_are="too low")
    pages = {"command": "plan fit --hold_out d7w224-12M", "predictions": [predictions[0] | {"name": "d7w224-12M"}]}
    place = kept(tmp_path, "law/fit.json", pages)
    assert "held d7w224-12M out" in said("06", "held_out", fit=place, inside=1, predicted_losses_are="too low")
    nine, tenth = study({f"v{n}": [2.0] for n in range(9)}), run("tenth", {"val/loss": 2.0})
    assert said("06", "grid", experiment=nine, tenth=tenth, predicted=1.95) == "right"
    assert "10.0% away" in said("06", "grid", experiment=nine, tenth=tenth, predicted=1.8)


def test_processes(run):
    one = run("one", {"train/loss": 3.0}, trainer__devices=1, trainer__precision="32-true", data__batch_size=24)
    two = run("two", {"train/loss": 3.00001}, trainer__devices="2", trainer__precision="32-true", data__batch_size=12)
    assert said("08", "two_equal_one", one=one, two=two) == "right"
    assert "trainer.devices=1, asked for is 2" in said("08", "two_equal_one", one=one, two=one)
    assert said("milestones", "processes", run=two) == "right"
    assert "two processes are asked for" in said("milestones", "processes", run=one)
    assert said("milestones", "processes", run=run("pair", {"train/loss": 3.0}, trainer__devices="0,1")) == "right"
    sent = run("sent", {"communication/mib": 8.0})
    assert said("08", "volume", run=sent, mib=8.1) == "right"
    assert "50% away" in said("08", "volume", run=sent, mib=4)
    buckets = [
        run(f"b{size}", {"speed/communication_hidden": hidden}, trainer__strategy__bucket_cap_mb=size)
        for size, hidden in ((0.25, 0.5), (1, 0.7), (4, 0.1))
    ]
    assert said("08", "buckets", runs=buckets, hides_most=1) == "right"
    assert "hides_most: 4" in said("08", "buckets", runs=buckets, hides_most=4)


def test_inference(tmp_path):
    speeds = [{"batch": batch, "bandwidth_share": 0.9 / batch, "flops_share": 0.02 * batch} for batch in (1, 4, 16)]
    place = kept(tmp_path, "bench/bench.json", {"speeds": speeds})
    answer = {"bench": place, "bandwidth_at_1": 0.9, "flops_at_1": 0.02, "flops_at_16": 0.32}
    assert said("09", "limits", **answer, limit_at_1="bandwidth") == "right"
    assert "'operations' is wrong" in said("09", "limits", **answer, limit_at_1="operations")
    models = {}
    for name, method, text, after in (
        ("own_text", "gptq", "data/shakespeare", 10.0),
        ("foreign_text", "gptq", "builtin", 11.0),
        ("rounded", "rtn", None, 12.0),
    ):
        content = {
            "method": method,
            "calibration": text and {"text": text},
            "perplexity": {"before": 9, "after": after},
        }
        models[name] = kept(tmp_path, f"{name}/quantization.json", content)
    assert said("09", "calibration", **models, share_left=0.5) == "right"
    assert "share_left: 0.9 is too large" in said("09", "calibration", **models, share_left=0.9)
    assert "wanted is gptq" in said("09", "calibration", **models | {"own_text": models["rounded"]}, share_left=0.5)


def load(rate: float | None, p99: float, **settings) -> dict:
    totals = {"availability": 1.0, "rate_ok": rate or 100.0, "latency_ms": {"p99": p99, "mean": 10.0}}
    return {"settings": {"rate": rate, "duration_s": 30, **settings}, "totals": totals, "missed_aims": []}


def test_loads(tmp_path):
    good, slow = (kept(tmp_path, f"{p99}/results.json", load(200.0, p99)) for p99 in (90.0, 900.0))
    assert said("10", "held", load=good) == "right"
    assert "P99 is 900 ms" in said("10", "held", load=slow)
    closed = kept(tmp_path, "closed/results.json", load(None, 50.0, concurrency=16))
    answer = {"closed": closed, "open": slow, "p99_open_over_closed": 18}
    assert said("10", "loops", **answer, a_user_sees="open") == "right"
    assert "'closed' is wrong" in said("10", "loops", **answer, a_user_sees="closed")
    steps = [{"rate_ok": rate, "latency_ms": {"mean": 10.0}} for rate in (100, 200, 400, 600)]
    stairs = kept(tmp_path, "stairs/results.json", {"steps": steps})
    assert said("10", "little", load=stairs, rate_times_latency=[1, 2, 4, 6]) == "right"
    assert "of step 2: 2000" in said("10", "little", load=stairs, rate_times_latency=[1, 2000, 4, 6])


class Service(http.server.BaseHTTPRequestHandler):
    ready, polite = 200, 404

    def answer(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path == "/health/ready":
            self.answer(self.ready, {"status": "?"})
        else:
            self.answer(200, {"data": [{"id": "ours"}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["model"] == "ours":
            self.answer(200, {"choices": [{"text": " or not"}]})
        else:
            self.answer(self.polite, {"error": {}})

    def log_message(self, *about):
        pass


@pytest.mark.parametrize(
    "ready, polite, found",
    [(200, 404, "right"), (503, 404, "/health/ready says 503"), (200, 200, "a model that does not exist gets 200")],
)
def test_a_service(ready, polite, found):
    handler = type("Handler", (Service,), {"ready": ready, "polite": polite})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        assert found in said("10", "service", url=url)
        if ready == 503 or polite == 404:
            assert ("right" if ready == 200 else found) in said("milestones", "served", url=url)
    finally:
        server.shutdown()
        server.server_close()
    assert "nothing answers" in said("10", "service", url=url)
    assert "url: not filled in yet" in said("10", "service", url=None)


def test_pictures(run, study, tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").touch()
    pictures = {str(tmp_path / f"{name}.png"): "a car" for name in "abc"}
    assert said("11", "confused", pictures=pictures) == "right"
    assert "three lines" in said("11", "confused", pictures={})
    learnt = run("learnt", {"val/r5": 0.30})
    fixed = run("fixed", {"val/r5": 0.27}, model__loss__temperature=0.02, model__loss__learn_temperature=False)
    assert said("11", "temperature", learnt=learnt, fixed=fixed, r5_lost=0.03) == "right"
    assert "r5_lost: 0.3 is too large" in said("11", "temperature", learnt=learnt, fixed=fixed, r5_lost=0.3)
    whole = run("whole", {"memory/peak_gib": 2.0}, model__lr=1)
    chunked = run("chunked", {"memory/peak_gib": 1.0}, model__lr=1, model__chunk_size=32)
    answer = {"whole": whole, "chunked": chunked, "memory_ratio": 0.5}
    assert said("11", "chunks", **answer, differs_by="BatchNorm") == "right"
    assert "which layer" in said("11", "chunks", **answer, differs_by="attention")
    good = study({"augmented": [0.06, 0.07, 0.06]}, metric="val/transfer_r5")
    assert said("11", "transfer", experiment=good) == "right"
    weak = study({"augmented": [0.06, 0.03, 0.05]}, "weak", metric="val/transfer_r5")
    assert "not above 0.054" in said("11", "transfer", experiment=weak)


def test_experts(run):
    even, uneven = (run(f"v{value}", {"experts/max_violation": value}) for value in (0.05, 0.5))
    assert said("12", "even", run=even) == "right"
    assert "came down to 0.500" in said("12", "even", run=uneven)
    dense, grown = run("dense", {"val/loss": 2.0}), run("grown", {"val/loss": 1.9}, model__init_from="models/upcycled")
    because = {"first_loss_is_the_dense_one_because": "equal experts"}
    assert said("12", "upcycled", dense=dense, upcycled=grown, **because) == "right"
    assert "did not begin from an upcycled model" in said("12", "upcycled", dense=dense, upcycled=dense, **because)


def test_alignment(run, study, tmp_path):
    tight = run("tight", {"rewards/margins": 0.5}, model__loss__beta=1.0)
    loose = run("loose", {"rewards/margins": 0.4}, model__loss__beta=0.05)
    answer = {"beta_1": tight, "beta_005": loose, "margin_1": 0.5, "margin_005": 0.4}
    assert said("13", "betas", **answer, goes_further="beta_005") == "right"
    assert "'beta_1' is wrong" in said("13", "betas", **answer, goes_further="beta_1")
    far, near = run("far", {"objective/kl": 30.0}), run("near", {"objective/kl": 8.0})
    assert said("13", "hacking", hacked=far, held=near) == "right"
    assert "asked for is below 10" in said("13", "hacking", hacked=far, held=far)
    short, slow = run("short", {"step": 9, "objective/kl": 2.0}), run("slow", {"objective/kl": 2.0}, model__lr=1)
    assert "has 9 steps, at least 100" in said("13", "hacking", hacked=far, held=short)
    assert "the runs differ in model.lr too" in said("13", "hacking", hacked=far, held=slow)
    from lightning_gpt.evaluation.arena import _interval

    pair = {"first": "models/sft", "second": "runs/dpo", "n": 100}
    pair |= {"win_rate": _interval((0.3, 0.2, 0.4)), "length_controlled": _interval((0.35, 0.25, 0.45))}
    place = kept(tmp_path, "arena/arena.json", {"pairs": [pair]})
    assert said("13", "arena", arena=f"{place}/arena.json", win_rate=0.7, length_controlled=0.65) == "right"
    assert "win_rate: 0.3" in said("13", "arena", arena=f"{place}/arena.json", win_rate=0.3, length_controlled=0.65)
    sizes = study({f"pairs-{n}": [0.6, 0.61, 0.6] for n in (128, 512, 2048, 4096)}, metric="val/accuracy")
    assert said("13", "pairs", experiment=sizes, said=0.62) == "right"
    assert "away from what the variant reached" in said("13", "pairs", experiment=sizes, said=0.8)


def test_longer_than_trained(run):
    rotary = run("rotary", {"val/loss": 2.0}, model__config__position="rotary", data__block_size=64)
    tables = {f"loss_at_{length}": {"linear": 2.2, "ntk": 2.0, "yarn": 2.1} for length in (64, 256)}
    assert said("07", "longer", run=rotary, **tables, best_at_64="ntk", best_at_256="ntk") == "right"
    assert "best_at_256: 'yarn' is wrong" in said(
        "07", "longer", run=rotary, **tables, best_at_64="ntk", best_at_256="yarn"
    )
    beside = Path(rotary) / "version_1"  # a validation of it, as the exercise asks for: no run.json
    beside.mkdir()
    (beside / "metrics.jsonl").write_text('{"step": 100, "val/loss": 2.2}\n')
    (beside / "config.yaml").write_text(yaml.safe_dump({"data": {"block_size": 256}, "trainer": {"max_steps": 500}}))
    assert said("07", "longer", run=rotary, **tables, best_at_64="ntk", best_at_256="ntk") == "right"


def test_a_project(tmp_path):
    report = tmp_path / "report.md"
    report.write_text(
        "# It works\n\n`lightning-gpt demo`\n\n" + "word " * 300 + "\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    )
    assert said("milestones", "project", report=str(tmp_path)) == "right"
    report.write_text("模型" * 200 + " | `lightning-gpt demo`")
    assert said("milestones", "project", report=str(report)) == "right"
    report.write_text("short |")
    assert "the report has 2 words" in said("milestones", "project", report=str(report))
