-- Schedule records.

-- {id, {field, value, ...}, name of its server}.
local function show_schedule(id)
  local server = redis.call('HGET', 'schedule:' .. id, 'server')
  local name = server and redis.call('HGET', 'server:' .. server, 'name')
  return {id, redis.call('HGETALL', 'schedule:' .. id), name or ''}
end

local function forget_schedule(id, schedule)
  redis.call('ZREM', 'account:' .. schedule.account .. ':schedules', id)
  redis.call('ZREM', 'account:' .. schedule.account .. ':schedules:server:' .. (schedule.server or ''), id)
  redis.call('ZREM', 'schedules:due', id)
  redis.call('DEL', 'schedule:' .. id)
end
