-- include: clock, records, nodes, conclude
-- Fail the queued jobs whose node has been silent for silent_ms. A job that has started is not failed here, because
-- its node reports its outcome.
-- Also when full.
-- ask: {silent_ms, limit, result (see `conclude`)}
-- Answers the IDs of the failed jobs.
local ask = cjson.decode(ARGV[1])
local failed = {}
local oldest = redis.call('ZRANGEBYSCORE', 'jobs:waiting', '-inf', now_ms() - ask.silent_ms, 'LIMIT', 0, ask.limit)

local function fail(job_id)
  local job = read('job:' .. job_id)
  if not job or job.state ~= 'queued' then
    redis.call('ZREM', 'jobs:waiting', job_id)
  elseif node_is_silent(job.node, ask.silent_ms) then
    conclude(job_id, job, ask.result)
    failed[#failed + 1] = job_id
  else -- its node is alive: check again when it could have been silent for silent_ms
    redis.call('ZADD', 'jobs:waiting', redis.call('HGET', 'node:' .. job.node, 'heartbeat_ms'), job_id)
  end
end

for _, job_id in ipairs(oldest) do
  redis.call('ZADD', 'jobs:waiting', now_ms(), job_id) -- set first, so that an unreadable job does not block the others
  attempt('job:' .. job_id, fail, job_id)
end
return failed
