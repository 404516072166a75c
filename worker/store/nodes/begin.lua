-- include: clock, records, nodes, events, transitions, conclude, claims
-- A node begins a job, for the first time or again after a crash. A job whose server has gone to another node is ended.
-- ask: {job, node, owner, left: result (see `conclude`) of a job whose server has left its node}
-- Answers {'begun', {field, value, ...} of the job}, {'refused', why}: then the job must not run, or
-- {'claim_refused', reason}.
local ask = cjson.decode(ARGV[1])
local key = 'job:' .. ask.job
local job = read(key)
if not owns_lease(ask.node, ask.owner) then return {'refused', 'lease_lost'} end
if not job then return {'refused', 'job_unknown'} end
local refused = refuse_foreign_job(ask, 'begin', job)
if refused then return refused end
if job.state == 'completed' or job.state == 'failed' then return {'refused', 'job_over'} end
local server = read('server:' .. job.server)
if server and server.node ~= ask.node then
  conclude(ask.job, job, ask.left)
  return {'refused', 'server_moved'}
end
redis.call('HINCRBY', key, 'attempts', 1)
if job.state == 'queued' then
  become(ask.job, job, 'in_progress')
  redis.call('HSET', key, 'started_ms', now_ms(), 'power_found', server and server.power or '')
  redis.call('ZREM', 'jobs:waiting', ask.job)
  tell(ask.job, job)
end
return {'begun', redis.call('HGETALL', key)}
