-- include: clock, records, snapshots, history
-- Retire the expired snapshots. A snapshot that is protected or unreadable, or whose server has a job, is checked
-- again after again_ms.
-- Also when full.
-- ask: {again_ms, limit}
-- Answers the number of snapshots that were retired.
local ask = cjson.decode(ARGV[1])
local retired, now = 0, now_ms()

local function expire(id)
  local snapshot = read('snapshot:' .. id)
  local expires_ms = snapshot and number(snapshot.expires_ms)
  if not expires_ms or snapshot.status == 'deleting' then return redis.call('ZREM', 'snapshots:expiring', id) end
  if expires_ms > now then return redis.call('ZADD', 'snapshots:expiring', expires_ms, id) end
  local server = read('server:' .. snapshot.server)
  if snapshot.protected == '1' or not server or holder_of(server) then return end
  retire_snapshot(id, snapshot, server.node, now)
  chronicle(id, 'expired')
  retired = retired + 1
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'snapshots:expiring', '-inf', now, 'LIMIT', 0, ask.limit)) do
  -- set first, so that a failing snapshot does not block the others
  redis.call('ZADD', 'snapshots:expiring', now + ask.again_ms, id)
  attempt('snapshot:' .. id, expire, id)
end
return retired
