-- include: clock, records, snapshots
-- Retire the snapshots whose time is over. ARGV: most, again_ms. One that is protected, or whose server has a job, is
-- looked at again after that time. Answers how many were retired.
local retired, now = 0, now_ms()
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'snapshots:expiring', '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local snapshot = read('snapshot:' .. id)
  local server = snapshot and read('server:' .. snapshot.server)
  if not snapshot then
    redis.call('ZREM', 'snapshots:expiring', id)
  elseif snapshot.protected == '1' or not server or server.job then
    redis.call('ZADD', 'snapshots:expiring', now + ARGV[2], id)
  else
    retire_snapshot(id, snapshot, server.node, now)
    retired = retired + 1
  end
end
return retired
