"""`lightning-gpt experiment search`: hyper-parameters by Optuna, each trial a real training run."""

import signal
from pathlib import Path


def search_command(
    yaml: str, parallel: int = 1, out: str | None = None, smoke: bool = False, restart: bool = False
) -> None:
    """Search for the settings with the lowest validation loss, then report.md, best.yaml, figures and results.json.

    Each trial is a process of its own under runs/searches/, stopped early when it falls behind. The trials are kept in
    an SQLite file there: a search that was killed goes on where it was when it is called again, and several calls at
    once share its trials.

    Args:
        yaml: the search, such as experiments/04_experiments/search_adamw.yaml; its paths start at the working
            directory.
        parallel: trials at a time, which share this machine's cores.
        out: directory of the report; by default beside the YAML, named as it.
        smoke: only see that trials work: two of them with two steps each; no report but under runs/.
        restart: throw away the trials of earlier calls.
    """
    from lightning_gpt.cli.experiment import _check, _stop
    from lightning_gpt.experiments.search_report import write_search_report
    from lightning_gpt.experiments.search_results import collect_search, confirm
    from lightning_gpt.experiments.search_run import SEARCHES, SearchRun, check_space, directory_of
    from lightning_gpt.experiments.search_spec import load_search

    path = Path(yaml)
    search = load_search(path)
    run = SearchRun(search, parallel, smoke=smoke)
    check_space(search, _check)
    # As Ctrl-C: the running trials save, and are resumed by the next call.
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        study = run.run(restart or smoke)
        confirmation = confirm(search, study, SEARCHES, parallel) if search.confirm and not smoke else None
    finally:
        signal.signal(signal.SIGTERM, before)
    directory = Path(out) if out else path.with_suffix("")
    if smoke and not out:
        directory = directory_of(search, SEARCHES, smoke) / "report"
    results = collect_search(search, study, f"lightning-gpt experiment search {path.as_posix()}", confirmation)
    print(write_search_report(results, directory))
