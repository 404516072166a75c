-- include: records, deliveries, idempotency, room
-- Queue a test event for delivery.
-- ask: {account, id, delivery_id, event, most, idempotency (see `replay`)}
-- Answers {'admitted', {delivery ID, {field, value, ...}}} or {'refused', code, ...}.
local ask = cjson.decode(ARGV[1])

local function test()
  local hook = read_of(ask.account, 'webhook:' .. ask.id)
  if not hook then return {'refused', 'webhook_not_found'} end
  if hook.enabled ~= '1' then return {'refused', 'webhook_not_ready', 'disabled'} end
  if redis.call('ZCARD', 'webhook:' .. ask.id .. ':due') >= ask.most then
    return {'refused', 'webhook_not_ready', 'pending'}
  end
  local refused = refuse_if_full('looks')
  if refused then return refused end
  post(ask.id, ask.delivery_id, {event = ask.event})
  return {'admitted', {ask.delivery_id, redis.call('HGETALL', 'delivery:' .. ask.delivery_id)}}
end

return replay(ask) or remember(ask, test())
