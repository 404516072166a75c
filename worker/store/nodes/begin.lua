-- include: clock, records, nodes, events, transitions
-- A node begins a job, for the first time or again after a crash.
-- ask: {job, node, owner}
-- Answers {'begun', {field, value, ...} of the job} or {'refused', why}: then the job must not run.
local ask = cjson.decode(ARGV[1])
local key = 'job:' .. ask.job
local job = read(key)
if not owns_lease(ask.node, ask.owner) then return {'refused', 'lease_lost'} end
if not job then return {'refused', 'job_unknown'} end
if job.node ~= ask.node then return {'refused', 'other_node'} end
if job.state == 'completed' or job.state == 'failed' then return {'refused', 'job_over'} end
redis.call('HINCRBY', key, 'attempts', 1)
if job.state == 'queued' then
  become(ask.job, job, 'in_progress')
  redis.call('HSET', key, 'started_ms', now_ms(),
    'power_found', redis.call('HGET', 'server:' .. job.server, 'power') or '')
  redis.call('ZREM', 'jobs:waiting', ask.job)
  tell(ask.job, job)
end
return {'begun', redis.call('HGETALL', key)}
