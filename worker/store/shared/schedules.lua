-- include: show
-- Schedule records.

-- {id, {field, value, ...}, name of its server}.
local function show_schedule(id)
  local server, account = unpack(redis.call('HMGET', 'schedule:' .. id, 'server', 'account'))
  return {id, redis.call('HGETALL', 'schedule:' .. id), name_of(server or '', account)}
end

local function forget_schedule(id, schedule)
  local mine = 'account:' .. schedule.account .. ':schedules'
  for _, list in ipairs({mine, mine .. ':labels', mine .. ':server:' .. (schedule.server or ''), 'schedules:due'}) do
    redis.call('ZREM', list, id)
  end
  redis.call('UNLINK', 'schedule:' .. id, 'schedule:' .. id .. ':runs')
end
