-- An operator has put a stranded server right. ARGV: job id, who, reason. Answers nil where there is no such job, 0 where
-- it is not stranded, else 1. Of a server that a later job has stranded as well, that one is still to be resolved.
local job = read('job:' .. ARGV[1])
if not job then return nil end
if job.stranded ~= '1' or job.resolved_ms then return 0 end
redis.call('HSET', 'job:' .. ARGV[1], 'resolved_ms', now_ms(), 'resolved_by', ARGV[2], 'resolved_reason', ARGV[3])
if redis.call('HGET', 'server:' .. job.server, 'stranded') == ARGV[1] then
  redis.call('HDEL', 'server:' .. job.server, 'stranded')
  redis.call('ZREM', 'servers:stranded', job.server)
end
return 1
