-- Have a node take no new job, or take jobs again and look at once. ARGV: node, reason or '' to go on, who, wake-up key.
-- Answers 0 where there is no such node.
local key = 'node:' .. ARGV[1]
if redis.call('EXISTS', key) == 0 then return 0 end
if ARGV[2] ~= '' then
  redis.call('HSET', key, 'paused_ms', now_ms(), 'paused_reason', ARGV[2], 'paused_by', ARGV[3])
  redis.call('SADD', 'nodes:paused', ARGV[1])
else
  redis.call('HDEL', key, 'paused_ms', 'paused_reason', 'paused_by')
  redis.call('SREM', 'nodes:paused', ARGV[1])
  redis.call('LPUSH', ARGV[4], '1')
  redis.call('LTRIM', ARGV[4], 0, 0)
end
return 1
