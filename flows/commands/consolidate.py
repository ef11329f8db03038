"""The command `consolidate`: a changeset is planned that puts one delta, solved in one shot from the base, in place of all."""

from typing import Annotated

import typer

from flows.commands.changesets import ReasonOption, proposed
from flows.commands.output import ERR, OUT, ByOption, JsonOption, PrefectOption, WorkspaceOption, emit, remark


def consolidate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what it entails and costs.")] = False,
    reason: ReasonOption = "",
    by: ByOption = None,
    workspace: WorkspaceOption = None,
    prefect: PrefectOption = False,
    as_json: JsonOption = False,
) -> None:
    """Plan one delta in place of all: what is in force, solved in one shot from the base. It needs approval like any change."""
    from flows.workspace import open_workspace

    opened = open_workspace(workspace)
    if dry_run:
        from flows.commands.revert import print_entailed
        from flows.consolidate import foresee
        from flows.session import Session

        entailed = foresee(Session(opened))
        emit(entailed.to_dict()) if as_json else print_entailed(entailed, OUT)
        return
    person = opened.person(by)
    if prefect:
        from flows.environment import prepare

        prepare(opened.root)
        from flows.deploy import consolidate_flow

        outcome = consolidate_flow(str(opened.root), person, reason)
        number, repeated = outcome["changeset"], outcome["repeated"]
    else:
        from flows.commands.revert import print_entailed
        from flows.consolidate import plan_consolidation
        from flows.progress import shown
        from flows.session import Session

        with shown(ERR) as progress:
            planned = plan_consolidation(
                Session(opened),
                by=person,
                reason=reason,
                tell=lambda entailed: print_entailed(entailed, ERR),
                progress=progress,
                foretell=remark,
            )
        number, repeated = planned.changeset.number if planned.changeset else None, planned.repeated
    proposed(opened, number, repeated=repeated, as_json=as_json)
