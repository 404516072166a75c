-- include: clock, records, schedules, idempotency, room
-- Create or change a schedule.
-- ask: {account, id, server (only to create), most, fields: {field: text}, due_ms ('': disabled; missing:
-- unchanged), idempotency (see `replay`)}
-- Answers {'admitted', schedule (see `show_schedule`)} or {'refused', code}.
local ask = cjson.decode(ARGV[1])

local function put()
  if not ask.server then
    if not read_of(ask.account, 'schedule:' .. ask.id) then return {'refused', 'schedule_not_found'} end
  else
    local server = read_of(ask.account, 'server:' .. ask.server)
    if not server or server.missing then return {'refused', 'server_not_found'} end
    local all = 'account:' .. ask.account .. ':schedules'
    local of_server = all .. ':server:' .. ask.server
    if redis.call('ZCARD', of_server) >= ask.most then return {'refused', 'schedule_limit_reached'} end
    local refused = refuse_if_full('new')
    if refused then return refused end
    local now = now_ms()
    redis.call('ZADD', all, now, ask.id)
    redis.call('ZADD', of_server, now, ask.id)
    ask.fields.v, ask.fields.account, ask.fields.server = '1', ask.account, ask.server
    ask.fields.created_ms = tostring(now)
  end
  ask.fields.next_ms = ask.due_ms
  if next(ask.fields) then write('schedule:' .. ask.id, ask.fields) end
  if ask.due_ms == '' then
    redis.call('ZREM', 'schedules:due', ask.id)
  elseif ask.due_ms then
    redis.call('ZADD', 'schedules:due', ask.due_ms, ask.id)
  end
  return {'admitted', show_schedule(ask.id)}
end

return replay(ask) or remember(ask, put())
