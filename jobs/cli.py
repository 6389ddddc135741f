"""The command ``structlearn``."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hpc.config.launcher import promise
from hpc.config.root import Progress
from hpc.errors import ConfigError, RunError
from hpc.output import lead_nowhere, say
from jobs.export import Format
from jobs.export import export as write_export

# The base of what Typer raises for a wrong command line: click's class, or that of the copy of click which
# newer versions of Typer bring along. It has no public name that holds for both.
_UsageError: Any = typer.BadParameter.__bases__[0]

Cluster = Literal["slurm", "local", "debug"]
"""As :data:`jobs.clusters.Name`, which would bring the whole configuration along."""

app = typer.Typer(
    name="structlearn",
    help="Train networks whose structure, learning rates and regularisation look after themselves.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

_OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=_OVERRIDES)
def train(
    context: typer.Context,
    config: Annotated[Path | None, typer.Argument(help="The run's YAML file; left out: all defaults.")] = None,
    ranks: Annotated[int | None, typer.Option(help="Start so many MPI ranks on this machine.")] = None,
    progress: Annotated[Progress, typer.Option(help="What to show while training.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")] = False,
    print_config: Annotated[
        bool, typer.Option("--print_config", help="Print the resolved configuration and leave.")
    ] = False,
    print_schema: Annotated[
        bool, typer.Option("--print_schema", help="Print the JSON schema of configurations and leave.")
    ] = False,
) -> None:
    """Train one run. Any key of the configuration can be given as --KEY.SUBKEY VALUE.

    Alone, with --ranks N, or under mpiexec or srun. Running it again on the same run_dir resumes.
    """
    from jobs.train import train as start

    overrides = list(context.args)
    if config is not None and str(config).startswith("--"):  # no file given: the first override took its place
        overrides.insert(0, str(config))
        config = None
    code = start(
        config,
        overrides,
        ranks=ranks,
        progress=progress,
        as_json=as_json,
        print_config=print_config,
        print_schema=print_schema,
    )
    raise typer.Exit(code)


@app.command(context_settings=_OVERRIDES)
def submit(
    context: typer.Context,
    sweep: Annotated[Path, typer.Argument(help="The sweep's YAML file: a configuration, and what varies.")],
    cluster: Annotated[Cluster, typer.Option(help="Who makes the runs.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be submitted, and leave.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Submit the runs of a sweep that are missing. Any key of the file can be given as --KEY.SUBKEY VALUE.

    Submitting the same sweep again adds what it lacks; a run that is done is never made twice.
    """
    from jobs.submit import submit as hand_over

    raise typer.Exit(hand_over(sweep, list(context.args), cluster, dry_run=dry_run, as_json=as_json))


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(help="The sweep's folder: its run_dir.")],
    everything: Annotated[bool, typer.Option("--all", help="Show every run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say how the runs of a sweep are doing."""
    from jobs.status import status as show

    raise typer.Exit(show(folder, everything=everything, as_json=as_json))


@app.command()
def retry(
    folder: Annotated[Path, typer.Argument(help="The sweep's folder: its run_dir.")],
    failed: Annotated[
        bool, typer.Option("--failed", help="Those that failed; else those that are stopped or lost.")
    ] = False,
    cluster: Annotated[Cluster | None, typer.Option(help="Who makes the runs; left out: who did before.")] = None,
) -> None:
    """Start again what failed, or go on with what stopped."""
    from jobs.retry import retry as start

    raise typer.Exit(start(folder, cluster, failed=failed))


@app.command()
def cancel(
    folder: Annotated[Path, typer.Argument(help="The sweep's folder: its run_dir.")],
    runs: Annotated[list[str] | None, typer.Argument(help="Ids of runs, or how they begin; left out: all.")] = None,
) -> None:
    """End the jobs of a sweep. What trains stops at a checkpoint; retry goes on from there."""
    from jobs.retry import cancel as end

    raise typer.Exit(end(folder, runs or []))


@app.command()
def logs(
    folder: Annotated[Path, typer.Argument(help="The sweep's folder: its run_dir.")],
    run: Annotated[str, typer.Argument(help="The id of a run, or how it begins.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the run ends.")] = False,
) -> None:
    """Print what a run of a sweep has printed."""
    from jobs.retry import logs as show

    raise typer.Exit(show(folder, run, follow=follow))


@app.command()
def collect(
    folder: Annotated[Path, typer.Argument(help="The sweep's folder: its run_dir.")],
    out: Annotated[Path | None, typer.Option(help="The file; left out: beside the folder, with its name.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Copy all records of a sweep into one HDF5 file, and name what is missing (then the exit code is 1)."""
    from jobs.collect import collect as gather

    raise typer.Exit(gather(folder, out, as_json=as_json))


@app.command()
def clean(
    folder: Annotated[Path, typer.Argument(help="The sweep's folder: its run_dir.")],
    everything: Annotated[
        bool, typer.Option("--all", help="The last one of each run, too: it can then not be exported any more.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and leave.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Remove checkpoints of runs that are done, all but the last of each: their networks stay."""
    from jobs.clean import clean as remove

    raise typer.Exit(remove(folder, everything=everything, dry_run=dry_run, as_json=as_json))


@app.command()
def report(
    source: Annotated[
        list[Path], typer.Argument(help="A run folder, a folder of run folders, or a collected file; or several.")
    ],
    out: Annotated[Path, typer.Option(help="Where the page, tables and figures go.")],
) -> None:
    """Make tables, figures and one page that shows them, from the records of runs."""
    try:
        from analysis.report import OutputError
        from analysis.report import report as make
    except ModuleNotFoundError as error:
        raise RunError(f"report: {error.name} is not installed; pip install 'structlearn[analysis]'") from None
    from analysis import RecordError

    try:
        page = make(source, out)
    except (RecordError, OutputError) as error:
        raise RunError(str(error)) from None
    typer.echo(f"report: {page}")
    for picture in sorted(page.parent.glob("*.png")):
        typer.echo(f"figure: {picture}")


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a run that has ended.")],
    kind: Annotated[Format, typer.Option("--format", help="What kind of file.")],
    out: Annotated[Path, typer.Option(help="The file; one that is there is replaced.")],
) -> None:
    """Write the network that a run has ended with: small, plain layers only, for torch, ONNX or safetensors."""
    typer.echo(write_export(run_dir, kind, out))


@app.command(context_settings=_OVERRIDES)
def doctor(
    context: typer.Context,
    test_job: Annotated[
        bool, typer.Option("--test-job", help="Also have SLURM start two ranks, and see that they find each other.")
    ] = False,
    sweep: Annotated[Path | None, typer.Option(help="A sweep file: the test job asks for what its runs do.")] = None,
    wait: Annotated[float, typer.Option(help="Minutes to wait for the test job; then it is cancelled.", min=0.1)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what this machine and its cluster offer, what is wrong, and how to mend it.

    With --test-job, what the job asks for can be given as --resources.KEY VALUE, by the keys of a sweep file.
    """
    from jobs.doctor import doctor as examine
    from jobs.trial import needs

    if not test_job and (context.args or sweep):
        raise ConfigError(f"{context.args[0] if context.args else '--sweep'}: goes with --test-job, and nowhere else")
    job = needs(sweep, context.args) if test_job else None
    raise typer.Exit(examine(as_json=as_json, job=job, wait_s=60 * wait))


def main() -> None:
    """The console script: one message for a mistake, no traceback, the documented exit codes."""
    arguments = sys.argv[1:]
    try:
        # A command's typer.Exit comes back as its code.
        code = app(arguments or ["--help"], prog_name="structlearn", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        sys.exit(code if arguments else 2)
    except typer.Abort:
        sys.exit(130)
    except _UsageError as error:
        where = error.ctx.command_path if error.ctx else "structlearn"
        message = " ".join(error.format_message().replace("Value error, ", "").split())
        _say(f"{message.rstrip('.')} (see {where} --help)")
        sys.exit(2)
    except RunError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except OSError as error:  # where nobody reads what was asked for; a run does not mind
        if error.filename is None:
            _say(f"the output cannot be written ({error.strerror}); send it elsewhere")
        else:
            _say(f"{error.filename}: {error.strerror}; see that the disk has room, and that you may use it")
        lead_nowhere(sys.stdout)
        sys.exit(1)


def _say(message: str) -> None:
    """One message on standard error. Under a launcher, rank 0 speaks for all."""
    try:
        made = promise()
    except ConfigError:  # it cannot be understood, and the message says so
        made = None
    if made is None or not made.rank:
        say(f"structlearn: {message}", sys.stderr)
