"""Read-only SQL views for people who bring their own tool; docs/queries.md says what their columns mean.

The text is frozen: migration 0001 makes these views, a change of them is a later migration. The rules are those of
`status`; a test holds the two against each other.
"""

VIEWS = (
    "correction_view",
    "waiting_view",
    "changeset_view",
    "result_view",
    "reverted_view",
    "gate_view",
    "approval_view",
    "evaluation_view",
    "superseding_view",
    "held_view",
    "in_force",
    "history_view",
)
"""In the order in which they can be made; the reverse one in which they can be dropped."""


def views(dialect_name: str) -> dict[str, str]:
    """Return the CREATE VIEW statement of each view, by name, for "sqlite" or "postgresql"."""
    statements = {name: f"CREATE VIEW {name} AS\n{_TEXTS[name].strip()}" for name in VIEWS}
    for word, meaning in _WORDS[dialect_name].items():
        statements = {name: statement.replace(word, meaning) for name, statement in statements.items()}
    return statements


_WORDS = {
    "sqlite": {
        "$COUNT(s.reverted)": "json_array_length(s.reverted)",
        "$EACH(s.reverted)": "json_each(s.reverted)",
        "$HOURS(m.moved_at, c.filed_at)": "ROUND((julianday(m.moved_at) - julianday(c.filed_at)) * 24, 3)",
    },
    "postgresql": {
        "$COUNT(s.reverted)": "json_array_length(s.reverted::json)",
        "$EACH(s.reverted)": "json_array_elements_text(s.reverted::json)",
        "$HOURS(m.moved_at, c.filed_at)": "ROUND(EXTRACT(EPOCH FROM m.moved_at::timestamptz - c.filed_at::timestamptz)"
        " / 3600, 3)::double precision",
    },
}
"""What the two databases say differently."""
_TEXTS = {
    "correction_view": """
SELECT c.model, c.id AS correction_id, c.sequence, t.subject, t.relation, t.prompt_template, t.target_new, t.target_true,
    t.source, c.submitter, t.reason, c.effective_date, c.supersedes, c.filed_at, c.file_name, c.line,
    CASE WHEN t.correction_id IS NULL THEN 1 ELSE 0 END AS erased, t.subject_key
FROM correction c
LEFT JOIN correction_text t ON t.correction_id = c.id
""",
    "waiting_view": """
SELECT w.model, c.id AS correction_id, w.sequence, t.subject, t.relation, t.prompt_template, t.target_new, t.source,
    c.submitter, t.reason, c.filed_at
FROM waiting w
JOIN correction c ON c.id = w.correction_id
LEFT JOIN correction_text t ON t.correction_id = c.id
""",
    "changeset_view": """
SELECT s.model, s.number, s.id AS changeset_id, s.sequence, s.kind, s.mode, s.method, s.parent AS parent_id,
    s.parent_version, s.candidate_version, s.reason, s.planned_by, s.planned_at,
    (SELECT COUNT(*) FROM changeset_result r WHERE r.changeset_id = s.id) AS corrections,
    (SELECT COUNT(*) FROM changeset_result r WHERE r.changeset_id = s.id AND r.status <> 'skipped') AS written,
    $COUNT(s.reverted) AS reverted,
    (SELECT COUNT(*) FROM changeset_gate g WHERE g.changeset_id = s.id) AS gates,
    (SELECT COUNT(*) FROM changeset_gate g WHERE g.changeset_id = s.id AND g.passed = 1) AS gates_passed,
    (SELECT COUNT(*) FROM decision d WHERE d.changeset_id = s.id AND d.verdict = 'approve') AS approvals,
    (SELECT COUNT(*) FROM decision d WHERE d.changeset_id = s.id AND d.verdict = 'reject') AS rejections,
    m.position AS version, m.moved_at AS applied_at, m.moved_by AS applied_by
FROM changeset s
LEFT JOIN head_move m ON m.changeset_id = s.id
""",
    "result_view": """
SELECT s.model, s.number, r.changeset_id, r.correction_id, r.status, r.residual_before, r.residual_after, r.delta,
    m.position AS version, m.moved_at AS applied_at, $HOURS(m.moved_at, c.filed_at) AS hours_since_filing
FROM changeset_result r
JOIN changeset s ON s.id = r.changeset_id
JOIN correction c ON c.id = r.correction_id
LEFT JOIN head_move m ON m.changeset_id = r.changeset_id
""",
    "reverted_view": """
SELECT s.model, s.number, s.id AS changeset_id, j.value AS correction_id, s.mode, s.reason, s.planned_by,
    m.position AS version, m.moved_at AS applied_at
FROM changeset s
CROSS JOIN $EACH(s.reverted) j
LEFT JOIN head_move m ON m.changeset_id = s.id
""",
    "gate_view": """
SELECT s.model, s.number, g.changeset_id, g.name, g.op, g.bound, g.value, g.passed,
    CASE g.op WHEN '>=' THEN g.value - g.bound ELSE g.bound - g.value END AS margin
FROM changeset_gate g
JOIN changeset s ON s.id = g.changeset_id
""",
    "approval_view": """
SELECT s.model, s.number, d.changeset_id, d.id AS decision_id, d.sequence, d.verdict, d.reviewer, d.reason, d.decided_at,
    d.policy_id, d.key_id, CASE WHEN d.signature IS NULL THEN 0 ELSE 1 END AS signed, s.kind, s.planned_by,
    s.reason AS planned_for, m.position AS version, m.moved_at AS applied_at
FROM decision d
JOIN changeset s ON s.id = d.changeset_id
LEFT JOIN head_move m ON m.changeset_id = s.id
""",
    "evaluation_view": """
SELECT s.model, s.number, e.changeset_id, e.position, e.kind, e.phase, e.case_id, t.prompt, t.expected, t.generated,
    e.probability, e.passed, CASE WHEN t.changeset_id IS NULL THEN 1 ELSE 0 END AS erased
FROM changeset_case e
JOIN changeset s ON s.id = e.changeset_id
LEFT JOIN case_text t ON t.changeset_id = e.changeset_id AND t.position = e.position
""",
    "superseding_view": """
WITH RECURSIVE chain (earlier, later) AS (
    SELECT supersedes, id FROM correction WHERE supersedes IS NOT NULL
    UNION
    SELECT chain.earlier, c.id FROM chain JOIN correction c ON c.supersedes = chain.later
)
SELECT earlier, later FROM chain
""",
    # Two changesets may have proposed the same delta: its corrections count once.
    # A stretch begins at a change after which a delta holds the correction and before which it did not, and ends at the
    # next change that removes the delta or drops the correction. CROSS JOIN is for SQLite, which then keeps the
    # order: from the correction by its deltas to the few moves that touched them.
    "held_view": """
SELECT m.model, r.correction_id, h.sha256 AS delta, m.position AS from_version, m.moved_at AS from_time,
    (SELECT MIN(n.position) FROM changeset_change x CROSS JOIN head_move n
     WHERE n.changeset_id = x.changeset_id AND x.sha256 = h.sha256 AND n.model = m.model AND n.position > m.position
     AND (x.removed = 1 OR x.dropped <> REPLACE(x.dropped, r.correction_id, ''))) AS to_version,
    (SELECT MIN(n.moved_at) FROM changeset_change x CROSS JOIN head_move n
     WHERE n.changeset_id = x.changeset_id AND x.sha256 = h.sha256 AND n.model = m.model AND n.position > m.position
     AND (x.removed = 1 OR x.dropped <> REPLACE(x.dropped, r.correction_id, ''))) AS to_time
FROM changeset_result r CROSS JOIN changeset_change h CROSS JOIN head_move m
WHERE h.sha256 = r.delta AND m.changeset_id = h.changeset_id AND r.status <> 'skipped'
AND NOT EXISTS (SELECT 1 FROM changeset_result o
    WHERE o.correction_id = r.correction_id AND o.delta = r.delta AND o.status <> 'skipped'
    AND (o.changeset_id < r.changeset_id OR o.changeset_id = r.changeset_id AND o.position < r.position))
AND h.removed = 0 AND h.dropped = REPLACE(h.dropped, r.correction_id, '')
AND COALESCE((SELECT CASE WHEN x.removed = 1 OR x.dropped <> REPLACE(x.dropped, r.correction_id, '') THEN 0 ELSE 1 END
    FROM changeset_change x CROSS JOIN head_move n
    WHERE n.changeset_id = x.changeset_id AND x.sha256 = h.sha256 AND n.model = m.model AND n.position < m.position
    ORDER BY n.position DESC LIMIT 1), 0) = 0
""",
    "in_force": """
SELECT c.model, c.id AS correction_id, t.subject, t.relation, t.prompt_template, t.target_new, t.target_true, t.source,
    c.submitter, t.reason, c.filed_at, t.subject_key,
    (SELECT MIN(h.from_version) FROM held_view h
     WHERE h.correction_id = c.id AND h.model = c.model AND h.to_version IS NULL) AS held_from_version,
    (SELECT MIN(h.from_time) FROM held_view h
     WHERE h.correction_id = c.id AND h.model = c.model AND h.to_version IS NULL) AS held_from_time
FROM correction c
LEFT JOIN correction_text t ON t.correction_id = c.id
WHERE EXISTS (SELECT 1 FROM held_view h WHERE h.correction_id = c.id AND h.model = c.model AND h.to_version IS NULL)
AND NOT EXISTS (
    WITH RECURSIVE later (id) AS (
        SELECT x.id FROM correction x WHERE x.supersedes = c.id
        UNION
        SELECT y.id FROM later JOIN correction y ON y.supersedes = later.id
    )
    SELECT 1 FROM later JOIN held_view h ON h.correction_id = later.id
    WHERE h.model = c.model AND h.to_version IS NULL)
""",
    "history_view": """
SELECT c.sequence, c.model, c.filed_at AS at, 'filed' AS kind, c.submitter AS person, c.id AS ref,
    COALESCE(t.subject || ' | ' || t.prompt_template || ' | ' || t.target_new, '[erased]') AS text
FROM correction c LEFT JOIN correction_text t ON t.correction_id = c.id
UNION ALL
SELECT q.sequence, NULL, q.quarantined_at, 'quarantined', '', q.id,
    q.file_name || ' line ' || CAST(q.line AS TEXT) || ', ' || q.field || ': ' || COALESCE(t.reason, '[erased]')
FROM quarantined q LEFT JOIN quarantined_text t ON t.quarantined_id = q.id
UNION ALL
SELECT sequence, model, planned_at, 'planned', planned_by, '#' || CAST(number AS TEXT), kind || ': ' || reason
FROM changeset
UNION ALL
SELECT d.sequence, s.model, d.decided_at, 'decided', d.reviewer, '#' || CAST(s.number AS TEXT), d.verdict || ': ' || d.reason
FROM decision d JOIN changeset s ON s.id = d.changeset_id
UNION ALL
SELECT m.sequence, m.model, m.moved_at, CASE WHEN m.changeset_id IS NULL THEN 'started' ELSE 'applied' END, m.moved_by,
    'v' || CAST(m.position AS TEXT), COALESCE('changeset #' || CAST(s.number AS TEXT), 'base model') || ' leads to ' || m.version
FROM head_move m LEFT JOIN changeset s ON s.id = m.changeset_id
UNION ALL
SELECT sequence, NULL, at, 'key', "by", id, action || ' ' || key_id || ' of ' || person || ': ' || reason FROM key_event
UNION ALL
SELECT sequence, model, adopted_at, 'policy', adopted_by, id, text FROM policy
UNION ALL
SELECT e.sequence, c.model, e.erased_at, 'erased', e.erased_by, e.ref, e.reason
FROM erasure e LEFT JOIN correction c ON c.id = e.ref
""",
}
