-- include: clock, records, queue, show, bounds
-- Deliveries to webhooks.

local DELIVERIES_KEPT_MS = 7 * 86400 * 1000
local DELIVERIES_LISTED = 1000 -- per webhook; also the limit of waiting ones
local MESSAGES_DROPPED_AT_ONCE = 20

-- Whether a delivery belongs to the webhook. Deliveries of an earlier version do not name their webhook.
local function is_delivery_of(id, delivery_id)
  return (redis.call('HGET', 'delivery:' .. delivery_id, 'webhook') or id) == id
end

-- Queue a webhook that has something to send: now, or later if it waits for a retry or for the end
-- of its claim. A webhook that is already due keeps its place.
local function line_up(id)
  if redis.call('SISMEMBER', 'webhooks:ready', id) == 1 then return end
  local hook, now = look_up('webhook:' .. id), now_ms()
  local place = tonumber(redis.call('ZSCORE', 'webhooks:due', id) or nil)
  if place and place <= now then return end
  local first = redis.call('ZRANGE', 'webhook:' .. id .. ':due', 0, 0, 'WITHSCORES')
  if not first[2] or not hook or hook.enabled ~= '1' then return redis.call('ZREM', 'webhooks:due', id) end
  redis.call('ZADD', 'webhooks:due', math.max(now, tonumber(first[2]), number(hook.claimed_until_ms) or 0), id)
  wake('webhooks:wake')
end

-- The account's deliveries whose message is kept: those that wait, and those that were given up after all attempts.
local function waiting_of(account)
  return 'account:' .. account .. ':deliveries'
end

-- Delete the message of a delivery, which stays in the webhook's log. A waiting delivery is given up.
local function drop_message(delivery_id)
  local delivery = 'delivery:' .. delivery_id
  local id = redis.call('HGET', delivery, 'webhook')
  if not id then return end -- it has expired
  local waited = redis.call('ZREM', 'webhook:' .. id .. ':due', delivery_id) == 1
  if not redis.call('ZSCORE', 'webhook:' .. id .. ':log', delivery_id) then return redis.call('DEL', delivery) end
  if waited then redis.call('HSET', delivery, 'next_ms', '', 'error', 'too_many_waiting') end
  redis.call('HDEL', delivery, 'job')
end

-- Count a waiting delivery, and delete the oldest messages of the account if there are too many.
local function keep_waiting(account, delivery_id, now)
  local waiting = waiting_of(account)
  redis.call('ZADD', waiting, now, delivery_id)
  redis.call('PEXPIRE', waiting, DELIVERIES_KEPT_MS)
  local over = math.min(redis.call('ZCARD', waiting) - bound('deliveries_per_account'), MESSAGES_DROPPED_AT_ONCE)
  if over <= 0 then return end
  for _, old in ipairs(redis.call('ZRANGE', waiting, 0, over - 1)) do
    drop_message(old)
    redis.call('ZREM', waiting, old)
  end
end

-- Add a delivery to the webhook's log, and to its queue, where it stays until it is delivered or given up.
local function post(id, delivery_id, delivery)
  local now, log, queue = now_ms(), 'webhook:' .. id .. ':log', 'webhook:' .. id .. ':due'
  delivery.webhook = id
  delivery.v, delivery.attempts, delivery.created_ms, delivery.next_ms = '1', '0', tostring(now), tostring(now)
  write('delivery:' .. delivery_id, delivery)
  redis.call('ZADD', log, now, delivery_id)
  redis.call('ZADD', queue, now, delivery_id)
  for _, key in ipairs({'delivery:' .. delivery_id, log, queue}) do redis.call('PEXPIRE', key, DELIVERIES_KEPT_MS) end
  redis.call('ZREMRANGEBYSCORE', log, '-inf', now - DELIVERIES_KEPT_MS)
  local account = redis.call('HGET', 'webhook:' .. id, 'account')
  for _, old in ipairs(redis.call('ZRANGE', log, 0, -DELIVERIES_LISTED - 1)) do
    for _, list in ipairs({log, queue, waiting_of(account)}) do redis.call('ZREM', list, old) end
    if is_delivery_of(id, old) then redis.call('DEL', 'delivery:' .. old) end
  end
  keep_waiting(account, delivery_id, now)
  line_up(id)
end

-- Queue a delivery of the job's current state for the webhooks that subscribe to it.
local function call_webhooks(job_id, job, event_id)
  local event, shown = 'job.' .. job.state, nil
  for _, id in ipairs(redis.call('ZRANGE', 'account:' .. job.account .. ':webhooks', '0', '-1')) do
    local hook = look_up('webhook:' .. id)
    local is_mine = hook and hook.account == job.account and hook.enabled == '1'
    local events = is_mine and hook.events or ''
    if string.find(' ' .. events .. ' ', ' ' .. event .. ' ', 1, true) then
      shown = shown or cjson.encode(show_job(job_id))
      post(id, string.sub(redis.sha1hex(id .. event_id), 1, 32), {event = event, job = shown})
    end
  end
end
