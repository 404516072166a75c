-- include: clock, records
-- The worker of a node, by the node's record.

local function node_is_silent(node, silent_ms)
  local heartbeat = number(redis.call('HGET', 'node:' .. node, 'heartbeat_ms'))
  if not heartbeat then return true end
  local leapt = number(redis.call('HGET', 'clock', 'leapt_ms')) or 0 -- nobody could be heard before
  return now_ms() - math.max(heartbeat, leapt) > tonumber(silent_ms)
end

local function owns_lease(node, owner)
  return redis.call('HGET', 'node:' .. node, 'owner') == owner
end
