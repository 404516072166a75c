-- include: records, nodes, events, states, job_reports, claims
-- A node reports a job's progress. A late report changes nothing.
-- Also when full.
-- ask: {job, node, owner, step, report (see `keep_report`)}
-- Answers {'lease_lost'} if the node must report it again, {'claim_refused', reason}, else {''}.
local ask = cjson.decode(ARGV[1])
if not owns_lease(ask.node, ask.owner) then return {'lease_lost'} end
local key = 'job:' .. ask.job
local job = read(key)
if not job then return {''} end
local refused = refuse_foreign_job(ask, 'progress', job)
if refused then return refused end
if not STEPS_OF[job.kind][ask.step] then return refuse_claim(ask, 'progress', 'step_unknown', 'job:' .. ask.job) end
if job.state ~= 'in_progress' then return {''} end
local is_kept = keep_report(ask.job, job, ask.report)
job.step = ask.step
redis.call('HSET', key, 'step', job.step)
if not is_kept then return refuse_claim(ask, 'progress', 'too_many', 'job:' .. ask.job) end
tell(ask.job, job)
return {''}
