"""The commands for checkpoints of full-weight training. None needs the model; all work beside a running server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter
from msgspec import to_builtins
from rich.table import Table

from sona.terminal import AsJson, StorePath, as_json, megabytes, number, out, plain, when

checkpoints = cyclopts.App(
    name="checkpoints", help="What full-weight training (POST /train) has made, and models of it.", version_flags=[]
)


@checkpoints.command(name="list")
def list_(store: StorePath, *, json: AsJson = False) -> None:
    """All checkpoints, oldest first."""
    from sona.checkpoints import list_checkpoints

    found = list_checkpoints(store)
    if json:
        print(as_json({"checkpoints": found}))
        return
    if not found:
        out.print("no checkpoint; POST /train, then POST /checkpoint makes one", highlight=False)
        return
    table = Table("number", "written", "file", "of", "digest", "new jobs", box=None)
    for one in found:
        table.add_row(
            str(one.number),
            when(one.created_ns),
            f"{megabytes(one.written_bytes)} {'whole' if one.is_snapshot else 'delta'}",
            megabytes(one.checkpoint_bytes),
            one.sha256[:12],
            plain(_few(one.jobs)),
        )
    out.print(table)


@checkpoints.command
def restore(
    checkpoint: Annotated[int, Parameter(help="Its number, as 'sona checkpoints list' shows it.")],
    /,
    *,
    store: StorePath,
    to: Annotated[Path, Parameter(help="Folder to make.")],
    json: AsJson = False,
) -> None:
    """Make a model's folder of a checkpoint, which 'sona serve --model' takes. The base that is served stays as it is.

    Adapters of a store belong to the base that they were learned on: serve the new model with another --store.
    """
    from sona.checkpoints import restore_model

    made = restore_model(store, checkpoint, to)
    if json:
        print(as_json({"path": str(to.absolute()), **to_builtins(made)}))
        return
    out.print(
        f"{plain(str(to))}: checkpoint [bold]{made.checkpoint}[/], {megabytes(made.size_bytes)}, whole by its digest "
        f"{made.sha256[:12]}; sona serve --model {plain(str(to))} --store NEW-STORE",
        highlight=False,
        soft_wrap=True,
    )


@checkpoints.command
def verify(store: StorePath, *, json: AsJson = False) -> None:
    """Put every checkpoint together, and compare it with its digests. Exit code 1: one can't be restored."""
    from sona.checkpoints import verify_checkpoints

    found = list(verify_checkpoints(store))
    if json:
        print(as_json({"checkpoints": found}))
    else:
        for one in found:
            said = "[green]whole[/]" if one.is_whole else f"[red]damaged[/]: {plain(one.why)}"
            out.print(f"{one.number}: {said}", highlight=False, soft_wrap=True)
        if not found:
            out.print("no checkpoint", highlight=False)
    sys.exit(0 if all(one.is_whole for one in found) else 1)


def _few(jobs: tuple[str, ...]) -> str:
    """A number of ids, named where they are few."""
    return ", ".join(jobs) if len(jobs) <= 2 else number(len(jobs), "job", "jobs")
