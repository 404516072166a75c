-- include: clock, records
-- The worker of a node, by the node's record.

local function node_is_silent(node, silent_ms)
  local heartbeat = number(redis.call('HGET', 'node:' .. node, 'heartbeat_ms'))
  return not heartbeat or now_ms() - heartbeat > tonumber(silent_ms)
end

local function owns_lease(node, owner)
  return redis.call('HGET', 'node:' .. node, 'owner') == owner
end
