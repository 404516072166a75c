-- include: clock, transitions, events
-- The start of a job on its node. Apart from `begin`, so that an admission does not include the end of a job.

-- Record that the node starts the job, for the first time or again, in `job`, too. power: of its server, or nil
local function start_job(job_id, job, power)
  job.attempts = tostring(redis.call('HINCRBY', 'job:' .. job_id, 'attempts', '1'))
  if job.state ~= 'queued' then return end
  become(job_id, job, 'in_progress', {started_ms = now_text(), power_found = power or ''})
  tell(job_id, job)
end
