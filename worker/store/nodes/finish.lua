-- include: records, nodes, transitions, conclude, job_reports
-- A node publishes a job's outcome; publishing it again changes nothing.
-- ARGV: job id, node, owner, JSON result as `conclude` takes it, JSON as `keep_report` does, what the server does now or ''.
if not owns_lease(ARGV[2], ARGV[3]) then return 'lease_lost' end
local job = read('job:' .. ARGV[1])
if not job then return 'job_unknown' end
if job.state == 'completed' or job.state == 'failed' then return 'job_over' end
if job.node ~= ARGV[2] then return 'other_node' end
if job.state == 'queued' then become(ARGV[1], job, 'in_progress') end -- Redis lost the moment in which it began
local told = cjson.decode(ARGV[5])
for _, begun in ipairs(told.steps) do -- those that the outcome has overtaken
  if begun.step ~= '' then job.step = begun.step end
end
if job.step then redis.call('HSET', 'job:' .. ARGV[1], 'step', job.step) end
keep_report(ARGV[1], told)
-- Who hears of the end may ask for the next job at once: the node's own report of the power comes a moment later.
if ARGV[6] ~= '' and redis.call('HGET', 'server:' .. job.server, 'node') == job.node then
  redis.call('HSET', 'server:' .. job.server, 'power', ARGV[6])
end
conclude(ARGV[1], job, cjson.decode(ARGV[4]))
return 'published'
