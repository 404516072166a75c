-- include: clock, queue, idempotency
-- Pause a node, or resume it: it then reads its queue at once.
-- ask: {node, reason: '' to resume, by, wake: key, idempotency (see `replay`)}
-- Answers {'admitted'} or {'refused', code}.
local ask = cjson.decode(ARGV[1])

local function turn()
  local key = 'node:' .. ask.node
  if redis.call('EXISTS', key) == 0 then return {'refused', 'node_not_found'} end
  if ask.reason ~= '' then
    redis.call('HSET', key, 'paused_ms', now_ms(), 'paused_reason', ask.reason, 'paused_by', ask.by)
    redis.call('SADD', 'nodes:paused', ask.node)
  else
    redis.call('HDEL', key, 'paused_ms', 'paused_reason', 'paused_by')
    redis.call('SREM', 'nodes:paused', ask.node)
    wake(ask.wake)
  end
  return {'admitted'}
end

return replay(ask) or remember(ask, turn())
