-- include: clock, queue, idempotency, pause
-- Pause or resume a node. A resumed node reads its queue at once. A pause can end automatically at a time, or when
-- the node's host has rebooted.
-- ask: {node, reason: '' to resume, by, until_ms: '' for no end, until_back: whether it ends when the host reboots,
-- wake: key, idempotency (see `replay`)}
-- Answers {'admitted'} or {'refused', code}.
local ask = cjson.decode(ARGV[1])

local function turn()
  local key = 'node:' .. ask.node
  if redis.call('SISMEMBER', 'nodes', ask.node) == 0 then return {'refused', 'node_not_found'} end
  local boot, told_by, owner = unpack(redis.call('HMGET', key, 'boot', 'boot_told_by', 'owner'))
  -- a new process may be on a host that has just booted and may not have reported this yet
  local is_known = boot and (told_by or owner) == owner
  if ask.until_back and not is_known then return {'refused', 'node_boot_unknown'} end
  still_paused(ask.node) -- a silent node does not end an expired pause
  if ask.reason == '' then
    resume_node(ask.node)
    wake(ask.wake)
    return {'admitted'}
  end
  -- comes first, because a full Redis refuses it
  redis.call('HSET', key, 'paused_ms', now_ms(), 'paused_reason', ask.reason, 'paused_by', ask.by,
    'paused_until_ms', ask.until_ms, 'paused_boot', ask.until_back and boot or '')
  redis.call('SADD', 'nodes:paused', ask.node)
  return {'admitted'}
end

return replay(ask) or remember(ask, turn())
