-- include: nodes
-- A node reports the servers that it reported last, and nobody has changed anything about them since.
-- Also when full.
-- ask: {node, owner, digest: of the servers, about, free_bytes, boot: see `nodes/report`}
-- Answers {moment at which an operator asked for a reconciliation, or ''}, {'lease_lost'}, or {} where the report must
-- be looked at whole.
local ask = cjson.decode(ARGV[1])
if not owns_lease(ask.node, ask.owner) then return {'lease_lost'} end
local reported = 'node:' .. ask.node .. ':reported'
if redis.call('TYPE', reported).ok ~= 'string' or redis.call('GET', reported) ~= ask.digest then return {} end
note_about(ask)
return {redis.call('HGET', 'node:' .. ask.node, 'reconcile_ms') or ''}
