-- include: clock, records, schedules, idempotency, room, account_limits
-- Create or change a schedule.
-- ask: {account, id, new, server (only to create; missing: a schedule by label), most, fields: {field: text}, due_ms
-- ('': disabled; missing: unchanged), idempotency (see `replay`)}
-- Answers {'admitted', schedule (see `show_schedule`)}, or {'refused', code, the account's limit of snapshots if `keep`
-- is above it}.
local ask = cjson.decode(ARGV[1])

-- Add a new schedule. Answers a refusal, or nil.
local function add()
  local all = 'account:' .. ask.account .. ':schedules'
  local lists = {all .. ':labels'}
  if ask.server then
    local server = read_of(ask.account, 'server:' .. ask.server)
    if not server or server.missing then return {'refused', 'server_not_found'} end
    lists = {all .. ':server:' .. ask.server, all}
  end
  if redis.call('ZCARD', lists[1]) >= ask.most then return {'refused', 'schedule_limit_reached'} end
  local refused = refuse_if_full('new')
  if refused then return refused end
  local now = now_ms()
  for _, list in ipairs(lists) do redis.call('ZADD', list, now, ask.id) end
  ask.fields.v, ask.fields.account, ask.fields.server = '1', ask.account, ask.server
  ask.fields.created_ms = tostring(now)
  return nil
end

local function put()
  local most = snapshots_max(ask.account)
  if ask.fields.keep and number(ask.fields.keep) > most then return {'refused', 'keep_above_limit', tostring(most)} end
  local refused = ask.new and add()
  if refused then return refused end
  if not ask.new and not read_of(ask.account, 'schedule:' .. ask.id) then return {'refused', 'schedule_not_found'} end
  ask.fields.next_ms = ask.due_ms
  if next(ask.fields) then write('schedule:' .. ask.id, ask.fields) end
  if ask.due_ms then redis.call('HDEL', 'schedule:' .. ask.id, 'planned_after') end
  if ask.due_ms == '' then
    redis.call('ZREM', 'schedules:due', ask.id)
  elseif ask.due_ms then
    redis.call('ZADD', 'schedules:due', ask.due_ms, ask.id)
  end
  return {'admitted', show_schedule(ask.id)}
end

return replay(ask) or remember(ask, put())
