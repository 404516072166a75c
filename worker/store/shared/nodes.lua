-- include: clock, records, pause
-- The worker of a node, from the node's record.

local function node_is_silent(node, silent_ms)
  local heartbeat = number(redis.call('HGET', 'node:' .. node, 'heartbeat_ms'))
  if not heartbeat then return true end
  return now_ms() - math.max(heartbeat, leapt_ms()) > tonumber(silent_ms)
end

-- Make the node's next report be processed completely.
local function forget_report(node)
  redis.call('DEL', 'node:' .. node .. ':reported')
end

-- Store the node's facts, which it reports from time to time.
local function note_about(ask)
  if ask.about == '' then return end
  local paused_boot = redis.call('HGET', 'node:' .. ask.node, 'paused_boot') or ''
  redis.call('HSET', 'node:' .. ask.node, 'about', ask.about)
  if ask.boot ~= '' then redis.call('HSET', 'node:' .. ask.node, 'boot', ask.boot) end
  -- its host has rebooted
  if paused_boot ~= '' and ask.boot ~= '' and ask.boot ~= paused_boot then resume_node(ask.node) end
  redis.call('ZADD', 'nodes:by:free', ask.free_bytes, ask.node)
end

local function owns_lease(node, owner)
  return redis.call('HGET', 'node:' .. node, 'owner') == owner
end
