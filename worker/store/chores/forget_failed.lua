-- include: clock, records, removal
-- Forget the failed snapshots that were kept for long enough. ARGV: kept_ms, most. Answers how many.
local old = redis.call('ZRANGEBYSCORE', 'snapshots:failed', '-inf', now_ms() - ARGV[1], 'LIMIT', 0, ARGV[2])
for _, id in ipairs(old) do
  local snapshot = read('snapshot:' .. id)
  if snapshot then forget_snapshot(id, snapshot) else redis.call('ZREM', 'snapshots:failed', id) end
end
return #old
