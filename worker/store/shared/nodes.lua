-- include: clock, records
-- The worker of a node, by the node's record.

local function node_is_silent(node, silent_ms)
  local heartbeat = number(redis.call('HGET', 'node:' .. node, 'heartbeat_ms'))
  if not heartbeat then return true end
  return now_ms() - math.max(heartbeat, leapt_ms()) > tonumber(silent_ms)
end

local function owns_lease(node, owner)
  return redis.call('HGET', 'node:' .. node, 'owner') == owner
end
