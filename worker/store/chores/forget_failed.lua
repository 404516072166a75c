-- include: clock, records, removal
-- Delete the records of snapshots that failed more than kept_ms ago.
-- Also when full.
-- ask: {kept_ms, limit}
-- Answers the number of records.
local ask = cjson.decode(ARGV[1])
local old = redis.call('ZRANGEBYSCORE', 'snapshots:failed', '-inf', now_ms() - ask.kept_ms, 'LIMIT', 0, ask.limit)
local function forget(id)
  local snapshot = read('snapshot:' .. id)
  if snapshot and snapshot.status == 'failed' then
    forget_snapshot(id, snapshot)
  else
    redis.call('ZREM', 'snapshots:failed', id)
  end
end

for _, id in ipairs(old) do
  -- set first, so that an unreadable snapshot does not block the others
  redis.call('ZADD', 'snapshots:failed', now_ms(), id)
  attempt('snapshot:' .. id, forget, id)
end
return #old
