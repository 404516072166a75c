-- include: nodes
-- A node repeats its last report, and nobody has changed its servers since.
-- Also when full.
-- ask: {node, owner, digest: of the servers, about, free_bytes, boot: see `nodes/report`}
-- Answers {when an operator last requested a reconciliation, or ''}, {'lease_lost'}, or {} if the complete report is
-- needed.
local ask = cjson.decode(ARGV[1])
if not owns_lease(ask.node, ask.owner) then return {'lease_lost'} end
local reported = 'node:' .. ask.node .. ':reported'
if redis.call('TYPE', reported).ok ~= 'string' or redis.call('GET', reported) ~= ask.digest then return {} end
note_about(ask)
return {redis.call('HGET', 'node:' .. ask.node, 'reconcile_ms') or ''}
