-- include: clock, records, nodes, events, transitions
-- A node begins a job, for the first time or again after a crash. ARGV: job id, node, owner of the node's lease.
-- Answers {'begun', {field, value, ...}} or {'refused', why}: the job must not run.
local job = read('job:' .. ARGV[1])
if not owns_lease(ARGV[2], ARGV[3]) then return {'refused', 'lease_lost'} end
if not job then return {'refused', 'job_unknown'} end
if job.node ~= ARGV[2] then return {'refused', 'other_node'} end
if job.state == 'completed' or job.state == 'failed' then return {'refused', 'job_over'} end
redis.call('HINCRBY', 'job:' .. ARGV[1], 'attempts', 1)
if job.state == 'queued' then
  become(ARGV[1], job, 'in_progress')
  redis.call('HSET', 'job:' .. ARGV[1], 'started_ms', now_ms(),
    'power_found', redis.call('HGET', 'server:' .. job.server, 'power') or '')
  redis.call('ZREM', 'jobs:waiting', ARGV[1])
  tell(ARGV[1], job)
end
return {'begun', redis.call('HGETALL', 'job:' .. ARGV[1])}
