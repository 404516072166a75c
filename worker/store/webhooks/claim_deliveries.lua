-- include: clock, records, deliveries
-- Claim the webhook that has waited longest, with the deliveries that are due. No one else can claim it until the claim
-- is settled or lease_ms have passed.
-- ask: {token: of the claim, lease_ms, limit}
-- Answers nil if nothing is due, else {id, url, {secret, ...}, {{delivery id, event, created_ms, attempts, job as it
-- was shown (not of a test)}, ...}}.
local ask = cjson.decode(ARGV[1])
local now = now_ms()

local function show(delivery_id)
  local key = 'delivery:' .. delivery_id
  local one = read(key)
  local job = one and one.job and json(one.job)
  if one and one.job and not job then return unreadable(key, 'job is not JSON') end
  return one and {delivery_id, one.event, one.created_ms, one.attempts, job}
end

local function due(id)
  local found, queue = {}, 'webhook:' .. id .. ':due'
  for _, delivery_id in ipairs(redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'LIMIT', 0, ask.limit)) do
    local row = is_delivery_of(id, delivery_id) and attempt('delivery:' .. delivery_id, show, delivery_id) or nil
    found[#found + 1] = row
    -- it has expired, can't be read, or is another webhook's
    if not row then redis.call('ZREM', queue, delivery_id) end
  end
  return found
end

local function secrets(id)
  local key = 'token:webhook:' .. id
  local kept = read(key) or unreadable(key, 'it does not exist')
  return {kept.secret, (kept.old or '') ~= '' and now < (number(kept.old_until_ms) or 0) and kept.old or nil}
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'webhooks:due', '-inf', now, 'LIMIT', 0, 10)) do
  local key = 'webhook:' .. id
  local hook = look_up(key)
  local deliveries = hook and hook.enabled == '1' and due(id) or {}
  local signing = #deliveries > 0 and attempt(key, secrets, id)
  redis.call('ZREM', 'webhooks:due', id)
  -- where nothing can sign the deliveries, they wait for another turn
  if #deliveries > 0 then redis.call('ZADD', 'webhooks:due', now + ask.lease_ms, id) else line_up(id) end
  if signing then
    redis.call('HSET', key, 'claim', ask.token, 'claimed_until_ms', now + ask.lease_ms)
    return {id, hook.url, signing, deliveries}
  end
end
