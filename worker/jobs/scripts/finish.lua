-- A node publishes a job's outcome; publishing it again changes nothing.
-- ARGV: job id, node, owner, JSON result as `conclude` takes it, JSON as `keep_told` does.
if not owns_lease(ARGV[2], ARGV[3]) then return 'lease_lost' end
local job = read('job:' .. ARGV[1])
if not job then return 'job_unknown' end
if job.state == 'completed' or job.state == 'failed' then return 'job_over' end
if job.node ~= ARGV[2] then return 'other_node' end
if job.state == 'queued' then become(ARGV[1], job, 'in_progress') end -- Redis lost the moment in which it began
keep_told(ARGV[1], cjson.decode(ARGV[5]))
conclude(ARGV[1], job, cjson.decode(ARGV[4]))
return 'published'
