"""`lightning-gpt load`: requests at a given rate, and what becomes of them."""

from typing import Literal


def load_command(
    url: str,
    model: str | None = None,
    endpoint: Literal["completions", "chat"] = "completions",
    rate: float = 10.0,
    rate_to: float | None = None,
    duration: float = 30.0,
    steps: str | None = None,
    arrivals: Literal["poisson", "constant"] = "poisson",
    burst: int = 1,
    concurrency: int | None = None,
    requests: int | None = None,
    warmup: float = 0.0,
    prompts: str = "builtin",
    words: str | None = None,
    distinct: int = 1000,
    max_tokens: str = "16",
    stream: float = 0.0,
    temperature: float = 0.0,
    sampling_seed: int | None = None,
    ignore_eos: bool = False,
    api_key: str | None = None,
    timeout: float = 30.0,
    request_timeout: float | None = None,
    connections: int = 4096,
    slo_ms: float = 500.0,
    check: bool = False,
    expect: str | None = None,
    max_error_rate: float | None = None,
    max_p99_ms: float | None = None,
    min_rate: float | None = None,
    cpu: int | None = None,
    watch_pid: str | None = None,
    seed: int = 0,
    output: str | None = None,
    allow_remote: bool = False,
) -> None:
    """Load an OpenAI-compatible server and report rates, latencies and errors.

    Requests go out when they are due, whatever has become of those before (an open loop), and latencies run from that
    moment: a server that stalls cannot hide it. Arrivals and requests depend on `seed` alone. Ctrl-C ends the load
    early and still reports. The exit status is 1 if an aim (max_error_rate, max_p99_ms, min_rate) is missed.

    Args:
        url: of the server, such as http://127.0.0.1:8000.
        model: name that the server knows; by default the first that it lists.
        endpoint: completions or chat.
        rate: requests a second.
        rate_to: the rate climbs evenly from `rate` to this.
        duration: seconds in which requests are sent.
        steps: rates one after the other in place of rate and duration, RATE:SECONDS or FROM-TO:SECONDS each, such as
            100:10,200:10,400:10 to find the ceiling.
        arrivals: poisson = at random, as many independent people would; constant = evenly apart.
        burst: requests that are due together, at the same rate.
        concurrency: a closed loop in place of a rate: so many clients, each asks again once it has its answer.
        requests: no more than this.
        warmup: first seconds that are in the series and in no total.
        prompts: file with a prompt a line, or with {"prompt": ...} or {"messages": [...]} a line; builtin = 32
            beginnings of stories.
        words: make prompts of so many words, as shares of lengths: 16:0.5,64:0.3,256:0.2, or 8-32, or 16.
        distinct: prompts that are made so; a server that caches answers sees the others again.
        max_tokens: new tokens of each answer, as words.
        stream: share of requests whose answers are streamed, 0 to 1.
        temperature: of sampling.
        sampling_seed: `seed` of every request.
        ignore_eos: answers go on to max_tokens, where the server knows this extension.
        api_key: key, or keys with commas between, one for each of several tenants; by default the environment's
            LIGHTNING_GPT_API_KEY.
        timeout: seconds after which a request without an answer is given up.
        request_timeout: seconds that the server is told to take at most, in the header X-Request-Timeout.
        connections: at most; requests that find all busy wait in the generator, and the report says so.
        slo_ms: answers within it count as goodput.
        check: ask every different request alone first; an answer under load that differs is wrong. Needs temperature 0
            or a sampling_seed.
        expect: answers.jsonl that an earlier check left, in place of asking.
        max_error_rate: aim: share of the requests that may fail, such as 0.001.
        max_p99_ms: aim: latency that 99% must keep.
        min_rate: aim: right answers a second.
        cpu: core that the generator keeps to.
        watch_pid: processes with commas between, whose memory and processor time are sampled with their children.
        seed: of arrival times and of the choice of requests.
        output: directory for results.json, report.html and report.png.
        allow_remote: also load a server that is not on this machine.
    """
    given = dict(locals())
    import os
    from pathlib import Path

    from lightning_gpt.cli import BadInput
    from lightning_gpt.cli.command_line import command_line
    from lightning_gpt.load.aims import Aims
    from lightning_gpt.load.live import LiveView
    from lightning_gpt.load.runner import run_load
    from lightning_gpt.load.settings import LoadSettings
    from lightning_gpt.load.tables import text

    keys = os.environ.get("LIGHTNING_GPT_API_KEY", "") if api_key is None else api_key
    settings = LoadSettings(
        url=url,
        model=model,
        endpoint=endpoint,
        rate=rate,
        rate_to=rate_to,
        duration_s=duration,
        steps=steps,
        arrivals=arrivals,
        burst=burst,
        concurrency=concurrency,
        requests=requests,
        warmup_s=warmup,
        prompts=prompts,
        words=words,
        distinct=distinct,
        max_tokens=max_tokens,
        stream=stream,
        temperature=temperature,
        sampling_seed=sampling_seed,
        ignore_eos=ignore_eos,
        api_keys=tuple(key.strip() for key in keys.split(",") if key.strip()),
        timeout_s=timeout,
        request_timeout_s=request_timeout,
        connections=connections,
        slo_ms=slo_ms,
        check=check,
        expect=expect,
        cpu=cpu,
        watch_pids=pids(watch_pid),
        seed=seed,
        allow_remote=allow_remote,
    )
    aims = Aims(max_error_rate, max_p99_ms, min_rate)
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)  # better to fail before the load than after it
    with LiveView(settings.seconds) as view:
        result = run_load(settings, view)
    missed = None if aims == Aims() else aims.missed(result.totals)
    print(text(result))
    if output is not None:
        from lightning_gpt.load.report import write_report

        # Keys are the caller's secret, and process numbers say nothing to others.
        command = command_line("load", load_command, given | {"api_key": None, "watch_pid": None})
        print("written:", *write_report(result, Path(output), command, missed))
    if missed:
        raise BadInput(f"aim missed, {'; '.join(missed)}", status=1)


def pids(text: str | None) -> tuple[int, ...]:
    """ "12,34" -> (12, 34).

    Raises:
        ValueError: something else stands there.
    """
    try:
        return tuple(int(word) for word in str(text).split(",")) if text is not None else ()
    except ValueError:
        raise ValueError(f"watch_pid={text} must be process numbers with commas between them") from None
