-- A node tells how far a job has got. ARGV: job id, node, owner, step. Told late or by another, it changes nothing.
local job = read('job:' .. ARGV[1])
if not job or job.state ~= 'in_progress' or not owns_lease(ARGV[2], ARGV[3]) then return 0 end
job.step = ARGV[4]
redis.call('HSET', 'job:' .. ARGV[1], 'step', job.step)
tell(ARGV[1], job)
return 1
