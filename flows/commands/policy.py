"""Commands about the approval policy: nse policy adopt, show."""

import json

from flows.commands.output import ERR, ByOption, JsonOption, WorkspaceOption, emit, say


def adopt(by: ByOption = None, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Put the approval section of params.yaml in force, signed with your key. Before that, it does not count."""
    from flows.decide import adopt as put_in_force
    from flows.workspace import open_workspace

    opened = open_workspace(workspace)
    adopted = put_in_force(opened, by=opened.person(by))
    for note in adopted.notes:
        ERR.print(f"note: {note}", markup=False)
    if as_json:
        emit({"policy": adopted.policy.to_dict(), "new": adopted.new})
        return
    state = "is in force now" if adopted.new else "was in force already: nothing to do"
    say(f"policy {adopted.policy.id[:12]} of {adopted.policy.adopted_by} {state}")


def show(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Show the policy in force, and whether params.yaml says something else."""
    from flows.decide import policy_in_force
    from flows.workspace import open_workspace

    adopted, policy, warning = policy_in_force(open_workspace(workspace))
    if as_json:
        emit({
            "adopted": adopted.to_dict() if adopted else None,
            "policy": json.loads(policy.text()),
            "same_as_params": warning is None,
        })  # fmt: skip
        return
    who = f"policy {adopted.id[:12]}, adopted by {adopted.adopted_by} at {adopted.adopted_at}" if adopted else ""
    say(who or "no policy was adopted; this holds until one is")
    say(json.dumps(json.loads(policy.text()), ensure_ascii=False, indent=1, sort_keys=True))
    if warning:
        ERR.print(f"note: {warning}", markup=False)
