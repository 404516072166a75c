-- include: clock, nodes, findings
-- Replace what reconciliation has found on one server.
-- ask: {node, owner, server, findings: JSON, '[]' where nothing was found}
-- Answers 0 or 1, without a meaning.
local ask = cjson.decode(ARGV[1])
if not owns_lease(ask.node, ask.owner) then return 0 end
if ask.findings == '[]' then
  forget_findings(ask.node, ask.server)
  return 0
end
redis.call('ZADD', 'findings', now_ms(), ask.server)
return redis.call('HSET', 'node:' .. ask.node .. ':findings', ask.server, ask.findings)
