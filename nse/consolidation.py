"""The order in which facts are written when only their set shall count: by a digest of what each says.

z's depend on the base weights alone, and an edit on top of no delta starts from these. So the corrections in force, written in
one round from the base, give weights that depend on which they are, and on nothing that happened on the way. What is left of
their order is rounding: in which order keys are stacked, texts are padded together and columns are added up. It is taken
out here.
"""

from collections.abc import Iterable

from nse.fingerprint import json_digest
from nse.request import EditRequest


def canonical(requests: Iterable[EditRequest]) -> list[EditRequest]:
    """The requests in an order that depends on what they say, and neither on how they came nor on their names."""
    return sorted(requests, key=_said)


def _said(request: EditRequest) -> str:
    """Digest of all that an edit depends on in a request."""
    return json_digest([request.subject, request.relation, request.prompt_template, request.target_new])
