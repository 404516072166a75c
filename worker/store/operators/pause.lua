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
  local boot, told_by, owner = unpack(redis.call('HMGET', key, 'boot', 'boot_told_by', 'owner'))
  -- a process that has just begun may be on a host that has just been started, and has not said so yet
  local is_known = boot and (told_by or owner) == owner
  if ask.until_back and not is_known then return {'refused', 'node_boot_unknown'} end
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
