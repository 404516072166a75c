-- include: clock, records
-- The guests that are off for a job, by the time at which they were asked to stop.

-- A job begins to stop its server. A guest that was already off is not off for the job.
-- ms: by the node's clock; the current time is used if that is impossible
local function note_off(job_id, job, ms)
  if job.power_found ~= 'on' or job.off_ms then return end
  local now, started_ms = now_ms(), number(job.started_ms)
  job.off_ms = string.format('%.0f', started_ms and ms >= started_ms and ms <= now and ms or now)
  redis.call('HSET', 'job:' .. job_id, 'off_ms', job.off_ms)
  redis.call('ZADD', 'servers:off', job.off_ms, job.server)
end

local function forget_off(job_id, server_id)
  redis.call('HDEL', 'job:' .. job_id, 'off_ms')
  redis.call('ZREM', 'servers:off', server_id)
end

-- The guest runs again, or nobody waits for it any longer. server: its record. The job that holds it may differ from
-- the job that stranded it.
local function back_on(server_id, server)
  if not redis.call('ZSCORE', 'servers:off', server_id) then return end
  if server.job then forget_off(server.job, server_id) end
  if server.stranded then forget_off(server.stranded, server_id) end
end
