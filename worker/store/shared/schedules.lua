-- Schedule records.

-- {id, {field, value, ...}, name of its server}.
local function show_schedule(id)
  local server = redis.call('HGET', 'schedule:' .. id, 'server')
  return {id, redis.call('HGETALL', 'schedule:' .. id), redis.call('HGET', 'server:' .. server, 'name') or ''}
end

local function forget_schedule(id, schedule)
  redis.call('ZREM', 'account:' .. schedule.account .. ':schedules', id)
  redis.call('ZREM', 'account:' .. schedule.account .. ':schedules:server:' .. schedule.server, id)
  redis.call('ZREM', 'schedules:due', id)
  redis.call('DEL', 'schedule:' .. id)
end
