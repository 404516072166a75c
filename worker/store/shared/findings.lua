-- Findings of reconciliation.

local function forget_findings(node, server_id)
  redis.call('HDEL', 'node:' .. node .. ':findings', server_id)
  redis.call('ZREM', 'findings', server_id)
end
