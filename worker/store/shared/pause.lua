-- include: clock, records
-- The pause of a node: it starts no new job.

local function resume_node(node)
  redis.call('HDEL', 'node:' .. node, 'paused_ms', 'paused_reason', 'paused_by', 'paused_until_ms', 'paused_boot')
  redis.call('SREM', 'nodes:paused', node)
end

-- Whether the node is paused now: a pause may have an end.
local function is_paused(node)
  local since, until_ms = unpack(redis.call('HMGET', 'node:' .. node, 'paused_ms', 'paused_until_ms'))
  return since and (number(until_ms) or math.huge) > now_ms()
end

-- A node's record, {field, value, ...}, for read-only scripts: without a pause that is over.
local function node_as_paused(node)
  local record = named(redis.call('HGETALL', 'node:' .. node))
  if not is_paused(node) then record.paused_ms = nil end
  return flattened(record)
end

-- Whether the node is paused now; removes a pause that is over.
local function still_paused(node)
  if is_paused(node) then return true end
  if redis.call('HEXISTS', 'node:' .. node, 'paused_ms') == 1 then resume_node(node) end
  return false
end
