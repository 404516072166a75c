-- include: clock, records, deliveries
-- Claim the webhook that has waited longest, with the deliveries that are due. No one else can claim it until the claim
-- is settled or lease_ms have passed.
-- ask: {token: of the claim, lease_ms, limit}
-- Answers nil if nothing is due, else {id, url, {secret, ...}, {{delivery id, event, created_ms, attempts, job as it
-- was shown (not of a test)}, ...}}.
local ask = cjson.decode(ARGV[1])
local now = now_ms()

local function due(id, hook)
  local found, queue = {}, 'webhook:' .. id .. ':due'
  for _, delivery_id in ipairs(redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'LIMIT', 0, ask.limit)) do
    local one = read('delivery:' .. delivery_id)
    if one and is_delivery_of(id, delivery_id) then
      found[#found + 1] = {delivery_id, one.event, one.created_ms, one.attempts, one.job and cjson.decode(one.job)}
    else
      redis.call('ZREM', queue, delivery_id) -- it expired before it was delivered, or is another webhook's
      redis.call('ZREM', waiting_of(hook.account), delivery_id)
    end
  end
  return found
end

local function secrets(id)
  local kept = read('token:webhook:' .. id)
  return {kept.secret, kept.old ~= '' and now < tonumber(kept.old_until_ms) and kept.old or nil}
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'webhooks:due', '-inf', now, 'LIMIT', 0, 10)) do
  local key = 'webhook:' .. id
  local hook = read(key)
  local deliveries = hook.enabled == '1' and due(id, hook) or {}
  redis.call('ZREM', 'webhooks:due', id)
  if #deliveries > 0 then
    redis.call('HSET', key, 'claim', ask.token, 'claimed_until_ms', now + ask.lease_ms)
    redis.call('ZADD', 'webhooks:due', now + ask.lease_ms, id)
    return {id, hook.url, secrets(id), deliveries}
  end
  line_up(id)
end
