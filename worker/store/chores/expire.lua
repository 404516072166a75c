-- include: clock, records, snapshots
-- Retire the expired snapshots. One that is protected, or whose server has a job, is checked again after again_ms.
-- ask: {again_ms, limit}
-- Answers the number of snapshots that were retired.
local ask = cjson.decode(ARGV[1])
local retired, now = 0, now_ms()
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'snapshots:expiring', '-inf', now, 'LIMIT', 0, ask.limit)) do
  local snapshot = read('snapshot:' .. id)
  local server = snapshot and read('server:' .. snapshot.server)
  local expires_ms = snapshot and tonumber(snapshot.expires_ms)
  if not expires_ms or snapshot.status == 'deleting' then
    redis.call('ZREM', 'snapshots:expiring', id)
  elseif expires_ms > now then
    redis.call('ZADD', 'snapshots:expiring', expires_ms, id)
  elseif snapshot.protected == '1' or not server or server.job then
    redis.call('ZADD', 'snapshots:expiring', now + ask.again_ms, id)
  else
    retire_snapshot(id, snapshot, server.node, now)
    retired = retired + 1
  end
end
return retired
