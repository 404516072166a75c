-- include: clock, queue, idempotency, pause
-- Pause a node, or resume it: it then reads its queue at once. A pause ends by itself at a moment, or when the node's
-- host has been started again.
-- ask: {node, reason: '' to resume, by, until_ms: '' for no moment, until_back: whether it ends with the host's start,
-- wake: key, idempotency (see `replay`)}
-- Answers {'admitted'} or {'refused', code}.
local ask = cjson.decode(ARGV[1])

local function turn()
  local key = 'node:' .. ask.node
  if redis.call('SISMEMBER', 'nodes', ask.node) == 0 then return {'refused', 'node_not_found'} end
  local boot = redis.call('HGET', key, 'boot')
  if ask.until_back and not boot then return {'refused', 'node_boot_unknown'} end
  still_paused(ask.node) -- one whose end has come and which its node, being silent, has not ended
  if ask.reason == '' then
    resume_node(ask.node)
    wake(ask.wake)
    return {'admitted'}
  end
  -- first what a full Redis refuses
  redis.call('HSET', key, 'paused_ms', now_ms(), 'paused_reason', ask.reason, 'paused_by', ask.by,
    'paused_until_ms', ask.until_ms, 'paused_boot', ask.until_back and boot or '')
  redis.call('SADD', 'nodes:paused', ask.node)
  return {'admitted'}
end

return replay(ask) or remember(ask, turn())
