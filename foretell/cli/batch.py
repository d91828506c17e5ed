"""`foretell batch`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from foretell.app.batch import submit
from foretell.app.config import load_config
from foretell.app.packages import is_path, open_store
from foretell.batch.source import Source
from foretell.batch.spec import JobSpec, Label, Prompting, Reading, Writing
from foretell.cli.batch_run import Address, On, ray_address, run_job, show_report
from foretell.cli.options import AsJson, DatabaseUrl, StoreUrl, TrustCode
from foretell.core.column_map import parse_column_map
from foretell.core.errors import ConfigError, InvalidInput, NotFound
from foretell.core.reference import parse_reference
from foretell.store.package import Package
from foretell.store.store import Store
from foretell.store.version import VersionInfo

Input = Annotated[str, typer.Argument(metavar="INPUT", help="A file, folder, glob or URL; several with commas.")]
Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="A folder of this machine; it is made.")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="COLUMN=INPUT", help="Which column feeds an input; a,b,c=INPUT joins several."),
]
Filter = Annotated[str, typer.Option(help="Only rows for which this holds, such as 'month >= 3'.")]
Keep = Annotated[
    str | None,
    typer.Option(metavar="COLUMN,…", help="Columns to keep, or all, or none.", show_default="those not mapped"),
]
Truth = Annotated[str, typer.Option(metavar="COLUMN[=OUTPUT]", help="The truth: the report says how good it is.")]
Format = Annotated[Literal["parquet", "csv", "jsonl"], typer.Option("--format", help="Form of the output files.")]
MaxErrors = Annotated[
    int | None, typer.Option(metavar="N", help="Stop when more rows fail.", show_default="any number may")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the job that writes to OUTPUT, if there is one.")]
Prompt = Annotated[str, typer.Option(metavar="TEXT", help="For a language model: what to ask, with {column} in it.")]
Schema = Annotated[
    Path | None, typer.Option(metavar="FILE", help="JSON schema of its answers; the properties become columns.")
]
System = Annotated[str, typer.Option(metavar="TEXT", help="What the language model is told first.")]
MaxTokens = Annotated[int, typer.Option(min=1, metavar="N", help="Of each answer of a language model.")]
BatchRows = Annotated[int, typer.Option(min=0, metavar="N", help="Rows of a request.", show_default="by trial")]
PartRows = Annotated[
    int, typer.Option(min=0, metavar="N", help="Rows of an output file, which a kill may cost.", show_default="15 s")
]
Replicas = Annotated[int | None, typer.Option(help="Processes of the model.", show_default="by the model")]
Threads = Annotated[int | None, typer.Option(help="Threads of each.", show_default="the cores divided")]
ConfigFile = Annotated[Path | None, typer.Option(metavar="FILE", help="foretell.toml: settings of the model.")]


def run(
    model: Annotated[str, typer.Argument(metavar="REF", help="A model of the store.")],
    source: Input,
    output: Output,
    columns: Columns = None,
    where: Filter = "",
    keep: Keep = None,
    label: Truth = "",
    form: Format = "parquet",
    max_errors: MaxErrors = None,
    resume: Resume = False,
    prompt: Prompt = "",
    schema: Schema = None,
    system: System = "",
    max_tokens: MaxTokens = 256,
    batch_rows: BatchRows = 0,
    part_rows: PartRows = 0,
    replicas: Replicas = None,
    threads: Threads = None,
    on: On = "local",
    address: Address = "",
    config: ConfigFile = None,
    trust_code: TrustCode = False,
    store: StoreUrl = "",
    database: DatabaseUrl = "",
    as_json: AsJson = False,
) -> None:
    """Run a model over tables or files: every row once, whatever happens in between.

    Reads Parquet, CSV, JSON lines, Arrow, and folders of images or texts; inputs are fed by columns of the same name.
    Writes files of predictions and kept columns to OUTPUT, rows that failed to OUTPUT/_errors, and a report. Ctrl-C,
    a crash or a kill leave a job that goes on where it was: the same command with --resume, or foretell jobs resume.

    \b
    Examples:
      foretell batch digits rows.parquet out/
      foretell batch minilm 'reviews/*.csv' out/ --map review=text --keep id
      foretell batch delay flights/ out/ --map dep_hour,distance=X --where "month >= 3" --label late
      foretell batch lite0 photos/ out/ --format csv
      foretell batch smollm2 mails.jsonl out/ --prompt "Is this spam? {body}" --schema verdict.json
    """
    ray = ray_address(on, address)
    settings = load_config(config, _flags(model, replicas, threads, trust_code, store, database))
    with open_store(settings.store.home, settings.store.database) as opened:
        info = _resolve(model, opened)
        asked = _prompting(opened.fetch(info), prompt, schema, system, max_tokens) if prompt else None
        reading = Reading(_paths(source), parse_column_map(columns or ()), where)
        writing = Writing(str(Path(output).absolute()), form, None if keep is None else _names(keep))
        truth = Label(*label.partition("=")[::2]) if label else None
        found = Source(reading.paths)
        spec = JobSpec(str(info), info.digest, reading, writing, truth, asked, max_errors, batch_rows, part_rows)
        job = submit(opened, spec, found, resume)
        if job.state == "completed":
            show_report(job.report, as_json)
        else:
            run_job(settings, opened, job, found, as_json, ray)


def _flags(
    model: str, replicas: int | None, threads: int | None, trust_code: bool, store: str, database: str
) -> dict[str, Any]:
    """The flags as keys of foretell.toml."""
    given = {key: value for key, value in (("count", replicas), ("threads", threads)) if value is not None}
    return {
        "server": {"trust_code": trust_code or None},
        "store": {"home": store or None, "database": database or None},
        "models": {model.partition("@")[0]: {"replicas": given}} if given else {},
    }


def _prompting(package: Package, prompt: str, schema: Path | None, system: str, max_tokens: int) -> Prompting:
    """What a language model is asked: as a user where it has a template for chats."""
    try:
        text = schema.read_text() if schema else ""
    except OSError as error:
        raise ConfigError(f"{schema}: {error.strerror}; name a readable file with a JSON schema") from None
    return Prompting(prompt, text, system, (package.path / "chat_template.jinja").is_file(), max_tokens)


def _resolve(model: str, store: Store) -> VersionInfo:
    """The version that is meant now: the job stays with it though an alias may move."""
    try:
        return store.resolve(parse_reference(model))
    except (InvalidInput, NotFound):
        if not is_path(model):
            raise
        raise ConfigError(
            f"{model} is no model of the store; a job can be resumed only with one: foretell add NAME {model}"
        ) from None


def _paths(text: str) -> tuple[str, ...]:
    """Absolute, so that the job can be resumed from anywhere."""
    names = (text,) if Path(text).exists() else _names(text)  # a comma may be in a name
    return tuple(path if "://" in path else str(Path(path).absolute()) for path in names)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
