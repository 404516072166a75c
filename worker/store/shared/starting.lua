-- include: clock, records, transitions, events
-- The start of a job on its node.

-- Record that the node starts the job, for the first time or again.
local function start_job(job_id, job)
  local key = 'job:' .. job_id
  redis.call('HINCRBY', key, 'attempts', 1)
  if job.state ~= 'queued' then return end
  become(job_id, job, 'in_progress')
  local power = redis.call('HGET', 'server:' .. job.server, 'power')
  redis.call('HSET', key, 'started_ms', now_ms(), 'power_found', power or '')
  redis.call('ZREM', 'jobs:waiting', job_id)
  if number(job.start_by_ms) then redis.call('ZREM', 'jobs:start_by', job_id) end
  tell(job_id, job)
end
