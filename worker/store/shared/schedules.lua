-- include: show
-- Schedule records.

-- {id, {field, value, ...}, name of its server}.
local function show_schedule(id)
  local server, account = unpack(redis.call('HMGET', 'schedule:' .. id, 'server', 'account'))
  return {id, redis.call('HGETALL', 'schedule:' .. id), name_of(server or '', account)}
end

local function forget_schedule(id, schedule)
  redis.call('ZREM', 'account:' .. schedule.account .. ':schedules', id)
  redis.call('ZREM', 'account:' .. schedule.account .. ':schedules:server:' .. (schedule.server or ''), id)
  redis.call('ZREM', 'schedules:due', id)
  redis.call('DEL', 'schedule:' .. id)
end
