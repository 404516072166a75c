-- include: clock, records, conclude
-- Fail the queued jobs that had to start before now: the windows of their schedules are over.
-- Also when full.
-- ask: {limit, result (see `conclude`)}
-- Answers the IDs of the failed jobs.
local ask = cjson.decode(ARGV[1])
local failed = {}

local function fail(job_id)
  local job = read('job:' .. job_id)
  if not job or job.state ~= 'queued' then return end
  conclude(job_id, job, ask.result)
  failed[#failed + 1] = job_id
end

for _, job_id in ipairs(redis.call('ZRANGEBYSCORE', 'jobs:start_by', '-inf', now_ms(), 'LIMIT', 0, ask.limit)) do
  redis.call('ZREM', 'jobs:start_by', job_id) -- first, so that an unreadable job does not block others
  attempt('job:' .. job_id, fail, job_id)
end
return failed
