-- include: clock, records, deliveries
-- Record the results of a claim's attempts and end the claim. No effect if the webhook was claimed again.
-- Also when full.
-- ask: {id, token, patience_ms, results: [{id, status, error, delivered, retry_ms ('': give up)}]}
-- Answers the reason if this disabled the webhook: 'gone', 'failing', or ''.
local ask = cjson.decode(ARGV[1])
local key, now = 'webhook:' .. ask.id, now_ms()
local log, queue = key .. ':log', key .. ':due'
local hook = look_up(key)
if not hook or hook.claim ~= ask.token then return '' end

local function settle(result)
  local delivery = 'delivery:' .. result.id
  if redis.call('EXISTS', delivery) == 0 then return end
  redis.call('HINCRBY', delivery, 'attempts', 1)
  redis.call('HSET', delivery, 'status', result.status, 'error', result.error)
  -- a delivery that was given up meanwhile is not retried, because its message is gone
  if not result.delivered and result.retry_ms ~= '' and redis.call('ZSCORE', queue, result.id) then
    redis.call('ZADD', queue, now + result.retry_ms, result.id)
    redis.call('HSET', delivery, 'next_ms', now + result.retry_ms)
    return
  end
  redis.call('ZREM', queue, result.id)
  redis.call('HSET', delivery, 'next_ms', '', 'delivered_ms', result.delivered and now or '')
  local is_listed = redis.call('ZSCORE', log, result.id)
  if result.delivered or not is_listed then -- otherwise its customer can send it again
    redis.call('HDEL', delivery, 'job')
    redis.call('ZREM', waiting_of(hook.account), result.id)
  end
  if not is_listed then redis.call('DEL', delivery) end
end

local gone, works = false, false
for _, result in ipairs(ask.results) do
  settle(result)
  gone, works = gone or result.status == '410', works or result.delivered
end
if works then
  redis.call('HDEL', key, 'failing_since_ms')
elseif #ask.results > 0 then
  redis.call('HSETNX', key, 'failing_since_ms', now)
end
local since = number(redis.call('HGET', key, 'failing_since_ms'))
local why = gone and 'gone' or since and now - since > ask.patience_ms and 'failing' or ''
if why ~= '' then redis.call('HSET', key, 'enabled', '', 'disabled_reason', why) end
redis.call('HDEL', key, 'claim', 'claimed_until_ms')
line_up(ask.id)
return why
