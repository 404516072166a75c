-- include: clock, idempotency
-- Request reconciliation of a node, which sees the request with its next report.
-- ask: {node, idempotency (see `replay`)}
-- Answers {'admitted'} or {'refused', code}.
local ask = cjson.decode(ARGV[1])

local function note()
  local key = 'node:' .. ask.node
  if redis.call('SISMEMBER', 'nodes', ask.node) == 0 then return {'refused', 'node_not_found'} end
  redis.call('HSET', key, 'reconcile_ms', now_ms())
  return {'admitted'}
end

return replay(ask) or remember(ask, note())
