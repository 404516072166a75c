-- include: clock, records
-- The pause of a node: it starts no new job.

local AUDIT_MOST = 100000 -- entries that wait for a keeper: see worker/store/access/audit.py

local function resume_node(node)
  redis.call('HDEL', 'node:' .. node, 'paused_ms', 'paused_reason', 'paused_by', 'paused_until_ms', 'paused_boot')
  redis.call('SREM', 'nodes:paused', node)
end

-- A pause has ended by itself, so no call adds an audit entry. why: what ended it.
local function end_pause(node, why)
  local by, reason = unpack(redis.call('HMGET', 'node:' .. node, 'paused_by', 'paused_reason'))
  resume_node(node)
  local entry = cjson.encode({
    at_ms = now_text(), method = 'SERVICE', path = '/ops/nodes/' .. node .. '/resume/',
    reason = why .. ' (paused by ' .. (by or '') .. ': ' .. (reason or '') .. ')',
  })
  -- pcall: the node resumes even if a full Redis, or a log without a keeper, accepts no entry
  local waiting = redis.pcall('LLEN', 'audit:new')
  if type(waiting) == 'number' and waiting < AUDIT_MOST then redis.pcall('RPUSH', 'audit:new', entry) end
end

-- Whether the node is paused now, and since when: nil without a pause. A pause that has ended may still be recorded.
local function is_paused(node)
  local since, until_ms = unpack(redis.call('HMGET', 'node:' .. node, 'paused_ms', 'paused_until_ms'))
  return since and (number(until_ms) or math.huge) > now_ms(), since
end

-- A node's record, {field, value, ...}, for read-only scripts: without a pause that has ended.
local function node_as_paused(node)
  local record = named(redis.call('HGETALL', 'node:' .. node))
  if not is_paused(node) then record.paused_ms = nil end
  return flattened(record)
end

-- Whether the node is paused now; removes a pause that has ended.
local function still_paused(node)
  local paused, since = is_paused(node)
  if paused then return true end
  if since then end_pause(node, 'the pause expired') end
  return false
end
