-- include: clock, records, nodes, findings, claims
-- Replace the findings of reconciliation on one server.
-- ask: {node, owner, server, findings: [{finding, tag, at: seconds, as text}]}
-- Answers {''}, {'not_here', why} or {'claim_refused', reason}.
local ask = cjson.decode(ARGV[1])
local MOST = 100 -- findings of one server
if not owns_lease(ask.node, ask.owner) then return {''} end
local refused = refuse_elsewhere(ask, 'findings', ask.server, read('server:' .. ask.server))
if refused then return refused end
local found = {unpack(ask.findings, 1, MOST)}
for _, one in ipairs(found) do
  if not (fits(one.finding, 32) and string.find(one.finding, '^[a-z_]+$') and fits(one.tag, 256) and is_whole(one.at)
      and tonumber(one.at) < 2 ^ 37) then
    return refuse_claim(ask, 'findings', 'malformed', 'server:' .. ask.server)
  end
end
if #found == 0 then
  forget_findings(ask.node, ask.server)
  return {''}
end
local list, text = 'node:' .. ask.node .. ':findings', cjson.encode(found)
if not may_add(ask.node, math.max(0, #text - redis.call('HSTRLEN', list, ask.server))) then
  return refuse_claim(ask, 'findings', 'too_many', 'server:' .. ask.server)
end
redis.call('ZADD', 'findings', now_ms(), ask.server)
redis.call('HSET', list, ask.server, text)
return {''}
