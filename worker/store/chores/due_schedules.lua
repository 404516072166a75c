-- include: clock
-- The schedules that are due, oldest first.
-- ask: {skip, limit}
-- Answers {now_ms, {id, due_ms, name, when, server id}, ...}.
local ask = cjson.decode(ARGV[1])
local now = now_ms()
local due = {now}
local found = redis.call('ZRANGEBYSCORE', 'schedules:due', '-inf', now, 'WITHSCORES', 'LIMIT', ask.skip, ask.limit)
for i = 1, #found, 2 do
  local name, when, server = unpack(redis.call('HMGET', 'schedule:' .. found[i], 'name', 'when', 'server'))
  if name then
    due[#due + 1] = {found[i], found[i + 1], name, when, server}
  else
    redis.call('ZREM', 'schedules:due', found[i])
  end
end
return due
