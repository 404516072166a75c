-- include: clock, records, pause
-- The worker of a node, from the node's record.

local function node_is_silent(node, silent_ms)
  local heartbeat = number(redis.call('HGET', 'node:' .. node, 'heartbeat_ms'))
  if not heartbeat then return true end
  return now_ms() - math.max(heartbeat, leapt_ms()) > tonumber(silent_ms)
end

-- When a silent node was heard last: {moment, or '' if it never was}; {} for a node that responds.
local function silence_of(node, silent_ms)
  return node_is_silent(node, silent_ms) and {redis.call('HGET', 'node:' .. node, 'heartbeat_ms') or ''} or {}
end

-- Add the silence of its node to a job that is in progress. shown: as `show_job` shows it
local function with_silence(shown, silent_ms)
  local job = named(shown[2])
  if job.state == 'in_progress' then shown[6] = silence_of(job.node, silent_ms) end
  return shown
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
  if ask.boot ~= '' then redis.call('HSET', 'node:' .. ask.node, 'boot', ask.boot, 'boot_told_by', ask.owner) end
  local has_rebooted = paused_boot ~= '' and ask.boot ~= '' and ask.boot ~= paused_boot
  if has_rebooted then end_pause(ask.node, 'its host has rebooted') end
  redis.call('ZADD', 'nodes:by:free', ask.free_bytes, ask.node)
end

local function owns_lease(node, owner)
  return redis.call('HGET', 'node:' .. node, 'owner') == owner
end
