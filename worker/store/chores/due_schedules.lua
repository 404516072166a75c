-- include: clock
-- List the due schedules, oldest first.
-- ask: {skip, limit}
-- Answers {now_ms, {id, due_ms, name, when, server ID, or account of one by label, time_zone or '', window_ms or ''},
-- ...}.
local ask = cjson.decode(ARGV[1])
local now = now_ms()
local due = {now}
local found = redis.call('ZRANGEBYSCORE', 'schedules:due', '-inf', now, 'WITHSCORES', 'LIMIT', ask.skip, ask.limit)
for i = 1, #found, 2 do
  local key = 'schedule:' .. found[i]
  local name, when, server, account, labels, zone, window =
    unpack(redis.call('HMGET', key, 'name', 'when', 'server', 'account', 'server_labels', 'time_zone', 'window_ms'))
  if redis.call('EXISTS', key) == 1 then
    due[#due + 1] = {found[i], found[i + 1], name or '', when or '', labels and account or server or '', zone or '',
      window or ''}
  else
    redis.call('ZREM', 'schedules:due', found[i])
  end
end
return due
