-- What reconciliation found on one server, for the operators' list. ARGV: node, owner, server id, JSON list.
if not owns_lease(ARGV[1], ARGV[2]) then return 0 end
local key = 'node:' .. ARGV[1] .. ':findings'
if ARGV[4] == '[]' then
  redis.call('ZREM', 'findings', ARGV[3])
  return redis.call('HDEL', key, ARGV[3])
end
redis.call('ZADD', 'findings', now_ms(), ARGV[3])
return redis.call('HSET', key, ARGV[3], ARGV[4])
