-- include: clock, records, pause
-- The worker of a node, by the node's record.

local function node_is_silent(node, silent_ms)
  local heartbeat = number(redis.call('HGET', 'node:' .. node, 'heartbeat_ms'))
  if not heartbeat then return true end
  return now_ms() - math.max(heartbeat, leapt_ms()) > tonumber(silent_ms)
end

-- Nothing is as the node reported it last: its next report is looked at whole.
local function forget_report(node)
  redis.call('DEL', 'node:' .. node .. ':reported')
end

-- What the node runs on, as it says from time to time.
local function note_about(ask)
  if ask.about == '' then return end
  local paused_boot = redis.call('HGET', 'node:' .. ask.node, 'paused_boot') or ''
  redis.call('HSET', 'node:' .. ask.node, 'about', ask.about)
  if ask.boot ~= '' then redis.call('HSET', 'node:' .. ask.node, 'boot', ask.boot, 'boot_told_by', ask.owner) end
  if paused_boot ~= '' and ask.boot ~= '' and ask.boot ~= paused_boot then resume_node(ask.node) end -- its host is back
  redis.call('ZADD', 'nodes:by:free', ask.free_bytes, ask.node)
end

local function owns_lease(node, owner)
  return redis.call('HGET', 'node:' .. node, 'owner') == owner
end
