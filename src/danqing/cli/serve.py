"""`danqing serve`: the studio."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from danqing.cli.options import ENGINE, QUANTIZE, Sectioned

REACH, LIMITS, STUDIO = "Reach", "Limits", "Studio"


def register(app: typer.Typer) -> None:
    app.command(
        "serve",
        cls=Sectioned,
        help="Open the studio: a web page, HTTP APIs, a queue and a gallery.",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(serve)


def serve(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="NAME", help="checkpoint where a request names none", rich_help_panel=STUDIO
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir", metavar="FOLDER", help="settings, models, queue and gallery", rich_help_panel=STUDIO
        ),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            metavar="URL",
            help="postgresql://...; unset is a file in the data folder",
            rich_help_panel=STUDIO,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="6GB",
            help="the most that painting and checkpoints kept for it take; less is slower",
            rich_help_panel=STUDIO,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps", rich_help_panel=STUDIO),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="NAME", help="float32, bfloat16 or float16", rich_help_panel=STUDIO)
    ] = None,
    engine: ENGINE = None,
    quantize: QUANTIZE = None,
    batch: Annotated[
        int,
        typer.Option(
            "--batch", min=1, max=64, help="jobs alike but for prompt and seed in a run", rich_help_panel=STUDIO
        ),
    ] = 1,
    keep_jobs: Annotated[
        float | None,
        typer.Option(
            "--keep-jobs",
            metavar="DAYS",
            min=0,
            help="forget jobs that have been over for so long, and the pictures that came with them",
            rich_help_panel=STUDIO,
        ),
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="the web page", rich_help_panel=STUDIO)] = True,
    autolaunch: Annotated[
        bool, typer.Option("--autolaunch", help="open the page in the browser", rich_help_panel=STUDIO)
    ] = False,
    import_dir: Annotated[
        list[Path] | None,
        typer.Option(
            "--import-dir", metavar="FOLDER", help="whose pictures the gallery may import", rich_help_panel=STUDIO
        ),
    ] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="log lines as JSON", rich_help_panel=STUDIO)] = False,
    host: Annotated[
        str | None,
        typer.Option("--host", metavar="ADDRESS", help="to listen at [default: 127.0.0.1]", rich_help_panel=REACH),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 takes a free one", rich_help_panel=REACH)
    ] = 7860,
    listen: Annotated[
        bool, typer.Option("--listen", help="let other machines in; needs --auth or --token", rich_help_panel=REACH)
    ] = False,
    auth: Annotated[
        list[str] | None,
        typer.Option(
            "--auth",
            metavar="USER:PASSWORD",
            help="who may come; kept hashed in the data folder",
            rich_help_panel=REACH,
        ),
    ] = None,
    token: Annotated[
        list[str] | None,
        typer.Option(
            "--token",
            metavar="TOKEN",
            envvar="DANQING_TOKENS",
            help="stands for a password in the APIs",
            rich_help_panel=REACH,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="a name of this machine in browsers", rich_help_panel=REACH),
    ] = None,
    cors_allow_origins: Annotated[
        str | None,
        typer.Option(
            "--cors-allow-origins",
            metavar="ORIGINS",
            help="other sites that may call the APIs, apart by commas",
            rich_help_panel=REACH,
        ),
    ] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option("--proxy", metavar="ADDRESS", help="whose X-Forwarded-For is believed", rich_help_panel=REACH),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--tls-certfile", metavar="FILE", help="certificate for https", rich_help_panel=REACH)
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--tls-keyfile", metavar="FILE", help="its key", rich_help_panel=REACH)
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="take pictures by URL, from public addresses", rich_help_panel=LIMITS)
    ] = False,
    max_body: Annotated[
        str, typer.Option("--max-body", metavar="128MB", help="of one request", rich_help_panel=LIMITS)
    ] = "128MB",
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", min=1, help="jobs that wait at once", rich_help_panel=LIMITS)
    ] = 1000,
    rate: Annotated[
        int, typer.Option("--rate", min=1, help="requests a minute of another machine", rich_help_panel=LIMITS)
    ] = 600,
) -> None:
    import os

    from danqing.cli.a1111_flags import understand
    from danqing.cli.show import say
    from danqing.library.settings import load_settings

    own = [option for parameter in context.command.params for option in parameter.opts]
    flags = understand(context.args, own)
    for note in flags.notes:
        say(note)
    given = flags.values
    if data_dir is not None:
        os.environ["DANQING_HOME"] = str(data_dir.absolute())
    if flags.folders:
        before = os.environ.get("DANQING_FOLDERS", "").split(os.pathsep)
        os.environ["DANQING_FOLDERS"] = os.pathsep.join(filter(None, (*before, *flags.folders)))
    settings = load_settings()
    chosen = model or given.get("model")
    if chosen is not None:
        settings = settings.model_copy(update={"default_model": chosen})

    from danqing.errors import DanqingError

    try:
        from danqing.runtime.amounts import parse_memory
        from danqing.serve.accept import Rules
        from danqing.serve.cache import ModelCache
        from danqing.serve.logs import configure
        from danqing.serve.run import open_engine
        from danqing.serve.run import serve as run
        from danqing.serve.security import check_exposure, token_hash, warning, write_users
        from danqing.serve.settings import ServeSettings
    except ModuleNotFoundError as error:
        raise DanqingError(f"serve: needs the package {error.name}; pip install 'danqing[serve]'") from None

    configure(log_json)
    data = settings.data_dir / "studio"
    users = data / "users"
    accounts = [*(auth or []), *flags.auth]
    if accounts:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_users(users, [(name, password) for name, _, password in (each.partition(":") for each in accounts)])
    cert, secret = certificate or given.get("certificate"), key or given.get("key")
    served = ServeSettings(
        host=host or given.get("host") or ("0.0.0.0" if listen else "127.0.0.1"),
        port=port,
        hosts=tuple(allow_host or ()),
        origins=tuple(filter(None, (cors_allow_origins or given.get("cors_allow_origins") or "").split(","))),
        users=users if users.exists() else None,
        tokens=tuple(token_hash(each) for each in token or ()),
        certificate=Path(cert) if cert else None,
        key=Path(secret) if secret else None,
        page=page and given.get("page", True),
        urls=allow_urls,
        body_bytes=parse_memory(max_body),
        requests_per_minute=rate,
        folders=tuple(import_dir or ()),
        proxies=tuple(proxy or ()),
    )
    check_exposure(served)
    for file in (served.certificate, served.key):
        if file is not None and not file.is_file():
            raise DanqingError(f"{file}: there is no such file")
    if served.key is not None and served.certificate is None:
        raise DanqingError("tls-keyfile: needs --tls-certfile, too")
    if (risk := warning(served)) is not None:
        say(risk)
    budget = memory or given.get("memory") or settings.memory
    models = ModelCache(
        None if budget is None else parse_memory(budget),
        settings=settings,
        device=device or given.get("device"),
        dtype=dtype or given.get("dtype"),
        engine=engine,
        quantize=quantize,
    )
    models.check(None)  # before anything is opened
    rules = Rules(waiting=max_waiting, urls=allow_urls)
    opened = open_engine(data, models, url=database, rules=rules, batch=batch, keep_days=keep_jobs)

    def ready(url: str) -> None:
        typer.echo(f"the studio is open at {url}")
        if autolaunch:
            import webbrowser

            webbrowser.open(url)

    run(opened, served, ready)
