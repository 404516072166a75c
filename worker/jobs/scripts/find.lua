-- One snapshot or job of an account. ARGV: 'snapshot' or 'job', id, account. Answers nil (also for another account's),
-- {snapshot, server name} or {job, {durations in ms of the node's latest jobs of its kind}}.
local key = ARGV[1] .. ':' .. ARGV[2]
local record = read(key)
if not record or record.account ~= ARGV[3] or record.status == 'deleting' then return nil end
if ARGV[1] == 'snapshot' then
  return {redis.call('HGETALL', key), redis.call('HGET', 'server:' .. record.server, 'name') or ''}
end
return {redis.call('HGETALL', key),
  redis.call('LRANGE', 'node:' .. record.node .. ':milliseconds:' .. record.kind, 0, -1)}
