-- include: clock, nodes, findings
-- What reconciliation found on one server, for the operators' list. ARGV: node, owner, server id, JSON list.
if not owns_lease(ARGV[1], ARGV[2]) then return 0 end
if ARGV[4] == '[]' then
  forget_findings(ARGV[1], ARGV[3])
  return 0
end
redis.call('ZADD', 'findings', now_ms(), ARGV[3])
return redis.call('HSET', 'node:' .. ARGV[1] .. ':findings', ARGV[3], ARGV[4])
