-- include: records, nodes, events, job_reports
-- A node tells how far a job has got. ARGV: job id, node, owner, step, JSON as `keep_report` takes
-- it. Told late or by another, it changes nothing.
-- Answers 'lease_lost' where it is to be told again, else ''.
if not owns_lease(ARGV[2], ARGV[3]) then return 'lease_lost' end
local job = read('job:' .. ARGV[1])
if not job or job.state ~= 'in_progress' then return '' end
job.step = ARGV[4]
redis.call('HSET', 'job:' .. ARGV[1], 'step', job.step)
keep_report(ARGV[1], cjson.decode(ARGV[5]))
tell(ARGV[1], job)
return ''
