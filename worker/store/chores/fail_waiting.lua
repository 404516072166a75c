-- include: clock, records, nodes, queue, conclude
-- Fail the jobs that wait for a node which has been silent for too long. ARGV: silent_ms, most, JSON result.
-- A job that was begun is not here: its node owes the outcome. Answers the ids.
local failed = {}
local oldest = redis.call('ZRANGEBYSCORE', 'jobs:waiting', '-inf', now_ms() - ARGV[1], 'LIMIT', 0, ARGV[2])
for _, job_id in ipairs(oldest) do
  local job = read('job:' .. job_id)
  if not job then
    redis.call('ZREM', 'jobs:waiting', job_id)
  elseif node_is_silent(job.node, ARGV[1]) then
    conclude(job_id, job, cjson.decode(ARGV[3]))
    forget_queued(job_id, job)
    failed[#failed + 1] = job_id
  else -- its node lives: it is looked at again when that could have been silent for so long
    redis.call('ZADD', 'jobs:waiting', redis.call('HGET', 'node:' .. job.node, 'heartbeat_ms'), job_id)
  end
end
return failed
