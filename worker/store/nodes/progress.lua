-- include: records, nodes, events, job_reports
-- A node reports how far a job has got. A report that comes late, or from another node, changes nothing.
-- ask: {job, node, owner, step, report (see `keep_report`)}
-- Answers 'lease_lost' where the node must report it again, else ''.
local ask = cjson.decode(ARGV[1])
if not owns_lease(ask.node, ask.owner) then return 'lease_lost' end
local key = 'job:' .. ask.job
local job = read(key)
if not job or job.state ~= 'in_progress' then return '' end
job.step = ask.step
redis.call('HSET', key, 'step', job.step)
keep_report(ask.job, ask.report)
tell(ask.job, job)
return ''
