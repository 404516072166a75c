-- include: records, nodes, begin, claims
-- A node begins a job, for the first time or again after a crash. A job whose server has moved to another node is
-- ended.
-- Also when full.
-- ask: {job, node, owner, left: result (see `conclude`) of a job whose server has left its node,
-- late: result of a job that had to start before now}
-- Answers {'begun', {field, value, ...} of the job}, {'refused', why} if the job must not run, or
-- {'claim_refused', reason}.
local ask = cjson.decode(ARGV[1])
local key = 'job:' .. ask.job
local job = read(key)
if not owns_lease(ask.node, ask.owner) then return {'refused', 'lease_lost'} end
if not job then return {'refused', 'job_unknown'} end
local refused = refuse_foreign_job(ask, 'begin', job)
if refused then return refused end
if job.state == 'completed' or job.state == 'failed' then return {'refused', 'job_over'} end
local why = begin(ask, ask.job, job)
if why then return {'refused', why} end
return {'begun', flattened(job)}
