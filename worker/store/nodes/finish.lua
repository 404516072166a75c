-- include: records, nodes, transitions, conclude, job_reports
-- A node publishes how a job ended. Publishing it again changes nothing.
-- ask: {job, node, owner, result (see `conclude`), report (see `keep_report`), power: of the server now, '' where
-- unknown}
-- Answers 'published', or why nothing was changed: 'lease_lost', 'job_unknown', 'job_over', 'other_node'.
local ask = cjson.decode(ARGV[1])
if not owns_lease(ask.node, ask.owner) then return 'lease_lost' end
local key = 'job:' .. ask.job
local job = read(key)
if not job then return 'job_unknown' end
if job.state == 'completed' or job.state == 'failed' then return 'job_over' end
if job.node ~= ask.node then return 'other_node' end
if job.state == 'queued' then become(ask.job, job, 'in_progress') end -- Redis has lost the job's begin
for _, begun in ipairs(ask.report.steps) do -- steps that are reported together with the outcome
  if begun.step ~= '' then job.step = begun.step end
end
if job.step then redis.call('HSET', key, 'step', job.step) end
keep_report(ask.job, ask.report)
-- A customer who sees the end may ask for the next job at once, before the node's next report of its servers' power.
if ask.power ~= '' and redis.call('HGET', 'server:' .. job.server, 'node') == job.node then
  redis.call('HSET', 'server:' .. job.server, 'power', ask.power)
end
conclude(ask.job, job, ask.result)
return 'published'
