-- include: clock
-- List the due schedules, oldest first.
-- ask: {skip, limit}
-- Answers {now_ms, {id, due_ms, name, when, server id}, ...}.
local ask = cjson.decode(ARGV[1])
local now = now_ms()
local due = {now}
local found = redis.call('ZRANGEBYSCORE', 'schedules:due', '-inf', now, 'WITHSCORES', 'LIMIT', ask.skip, ask.limit)
for i = 1, #found, 2 do
  local key = 'schedule:' .. found[i]
  local name, when, server = unpack(redis.call('HMGET', key, 'name', 'when', 'server'))
  if redis.call('EXISTS', key) == 1 then
    due[#due + 1] = {found[i], found[i + 1], name or '', when or '', server or ''}
  else
    redis.call('ZREM', 'schedules:due', found[i])
  end
end
return due
