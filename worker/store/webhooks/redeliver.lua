-- include: clock, records, deliveries, idempotency, room
-- Send failed deliveries of a webhook again: one, or all.
-- ask: {account, id, delivery_id (missing: all), no_message: the event that needs no stored message, pause_ms:
-- minimum time after a request for all that sent something, idempotency (see `replay`)}
-- Answers {'admitted', {delivery ID, {field, value, ...}}}, for all {'admitted', how many, how many others have
-- lost their message}, or {'refused', code, ...}.
local ask = cjson.decode(ARGV[1])
local now, key = now_ms(), 'webhook:' .. ask.id
local log, queue = key .. ':log', key .. ':due'
local FIELDS = {'webhook', 'event', 'attempts', 'created_ms', 'next_ms', 'status', 'error', 'delivered_ms'}

-- A delivery of the webhook, without its message; nil: there is none.
local function find(delivery_id)
  local one, values = {id = delivery_id}, redis.call('HMGET', 'delivery:' .. delivery_id, unpack(FIELDS))
  for i, field in ipairs(FIELDS) do one[field] = values[i] or '' end
  -- a delivery of an earlier version does not name its webhook
  if one.created_ms == '' or one.webhook ~= '' and one.webhook ~= ask.id then return nil end
  for _, field in ipairs({'attempts', 'created_ms'}) do
    if not number(one[field]) then return unreadable('delivery:' .. delivery_id, field .. ' cannot be read') end
  end
  return one
end

-- Why a delivery can't be sent again: 'delivered' or 'gone'; nil: it can.
local function why_not(one)
  if one.delivered_ms ~= '' then return 'delivered' end
  if one.event ~= ask.no_message and redis.call('HEXISTS', 'delivery:' .. one.id, 'job') == 0 then return 'gone' end
end

-- Make a delivery due now. One that was given up gets all its attempts again.
local function send(one)
  if one.next_ms == '' then
    one.attempts = '0'
    redis.call('ZADD', waiting_of(ask.account), one.created_ms, one.id)
  end
  one.next_ms = tostring(now)
  redis.call('HSET', 'delivery:' .. one.id, 'attempts', one.attempts, 'next_ms', one.next_ms)
  redis.call('ZADD', queue, one.created_ms, one.id) -- in the order of the events
end

local function redeliver_one()
  local one = redis.call('ZSCORE', log, ask.delivery_id) and find(ask.delivery_id)
  if not one then return {'refused', 'delivery_not_found'} end
  local why = why_not(one)
  if why then return {'refused', 'delivery_not_redeliverable', why} end
  send(one)
  return {'admitted', {one.id, flattened(one)}}
end

local function redeliver_all(hook)
  local passed = now - (number(hook.redelivered_ms) or 0)
  if passed >= 0 and passed < ask.pause_ms then return {'refused', 'redelivered_recently'} end
  local sent, gone = 0, 0
  for _, delivery_id in ipairs(redis.call('ZRANGE', log, 0, -1)) do
    local one = attempt('delivery:' .. delivery_id, find, delivery_id)
    -- a delivery that waits for its first attempt has not failed
    local has_failed = one and one.delivered_ms == '' and (one.next_ms == '' or tonumber(one.attempts) > 0)
    if has_failed and why_not(one) then
      gone = gone + 1
    elseif has_failed then
      send(one)
      sent = sent + 1
    end
  end
  if sent > 0 then redis.call('HSET', key, 'redelivered_ms', now) end
  return {'admitted', sent, gone}
end

local function redeliver()
  local hook = read_of(ask.account, key)
  if not hook then return {'refused', 'webhook_not_found'} end
  if hook.enabled ~= '1' then return {'refused', 'webhook_disabled'} end
  local answer = refuse_if_full('changes')
  if answer then return answer end
  if ask.delivery_id then answer = redeliver_one() else answer = redeliver_all(hook) end
  redis.call('PEXPIRE', queue, DELIVERIES_KEPT_MS)
  line_up(ask.id)
  return answer
end

return replay(ask) or remember(ask, redeliver())
