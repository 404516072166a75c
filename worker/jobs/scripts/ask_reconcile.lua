-- Have a node reconcile; it finds this with its next report. ARGV: node. Answers 0 where there is no such node.
local key = 'node:' .. ARGV[1]
if redis.call('EXISTS', key) == 0 then return 0 end
redis.call('HSET', key, 'reconcile_ms', now_ms())
return 1
