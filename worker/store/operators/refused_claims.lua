-- List the refused claims of nodes of the last 30 days, newest first.
-- Only reads.
-- ask: {limit}
-- Answers {{node, call, reason, count, first_ms, last_ms, object or ''}, ...}.
local ask = cjson.decode(ARGV[1])
local shown = {}
local found = redis.call('ZREVRANGE', 'refused_claims', 0, ask.limit - 1, 'WITHSCORES')
for i = 1, #found, 2 do
  local node, call, reason = string.match(found[i], '^(.*):([a-z_]+):([a-z_]+)$')
  local count, first_ms, about =
    unpack(redis.call('HMGET', 'refused_claim:' .. found[i], 'count', 'first_ms', 'about'))
  if node and count then shown[#shown + 1] = {node, call, reason, count, first_ms, found[i + 1], about or ''} end
end
return shown
