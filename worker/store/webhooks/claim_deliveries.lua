-- include: clock, records, deliveries
-- Claim a webhook with the deliveries that are due. Accounts take turns; of an account's webhooks, the one that has
-- waited longest is next. No other sender gets it until the claim is settled or lease_ms have passed.
-- Also when full.
-- ask: {token: of the claim, lease_ms, limit}
-- Answers nil if nothing is due, else {id, url, {secret, ...}, {{delivery ID, event, created_ms, attempts, job as it
-- was shown (not for a test)}, ...}}.
local ask = cjson.decode(ARGV[1])
local now = now_ms()

local function show(delivery_id)
  local key = 'delivery:' .. delivery_id
  local one = read(key)
  local job = one and one.job and json(one.job)
  if one and one.job and not job then return unreadable(key, 'job is not JSON') end
  return one and {delivery_id, one.event, one.created_ms, one.attempts, job}
end

local function due(id, hook)
  local found, queue = {}, 'webhook:' .. id .. ':due'
  for _, delivery_id in ipairs(redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'LIMIT', 0, ask.limit)) do
    local row = is_delivery_of(id, delivery_id) and attempt('delivery:' .. delivery_id, show, delivery_id) or nil
    found[#found + 1] = row
    if not row then -- it has expired, is unreadable, or belongs to another webhook
      redis.call('ZREM', queue, delivery_id)
      redis.call('ZREM', waiting_of(hook.account), delivery_id)
    end
  end
  return found
end

local function secrets(id)
  local key = 'token:webhook:' .. id
  local kept = read(key) or unreadable(key, 'it does not exist')
  return {kept.secret, (kept.old or '') ~= '' and now < (number(kept.old_until_ms) or 0) and kept.old or nil}
end

local function ready_of(account) return 'account:' .. account .. ':webhooks:ready' end

local function make_ready(id)
  local account = redis.call('HGET', 'webhook:' .. id, 'account')
  if account then
    demand('webhooks:turns', 'zset')
    demand(ready_of(account), 'zset')
    redis.call('SADD', 'webhooks:ready', id)
    redis.call('ZADD', ready_of(account), 'NX', now, id)
    redis.call('ZADD', 'webhooks:turns', 'NX', now, account)
  end
  redis.call('ZREM', 'webhooks:due', id)
end

-- Move due webhooks to the queues of their accounts.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'webhooks:due', '-inf', now, 'LIMIT', 0, 100)) do
  redis.call('ZADD', 'webhooks:due', now + ask.lease_ms, id) -- behind the others, if its account is unreadable
  attempt('webhook:' .. id, make_ready, id)
end

-- The webhook whose turn it is; nil: none.
local function next_ready()
  local account = redis.call('ZRANGE', 'webhooks:turns', 0, 0)[1]
  if not account then return nil end
  local id = redis.call('ZPOPMIN', ready_of(account))[1]
  redis.call('ZREM', 'webhooks:turns', account)
  if redis.call('EXISTS', ready_of(account)) == 1 then
    redis.call('ZADD', 'webhooks:turns', now + 0.5, account) -- behind accounts that were added in this millisecond
  end
  if id then redis.call('SREM', 'webhooks:ready', id) end
  return id
end

for _ = 1, 10 do
  local id = next_ready()
  if not id then return nil end
  local key = 'webhook:' .. id
  local hook = look_up(key)
  local deliveries = hook and hook.enabled == '1' and due(id, hook) or {}
  local signing = #deliveries > 0 and attempt(key, secrets, id)
  -- without a secret to sign them, the deliveries wait for another turn
  if #deliveries > 0 then redis.call('ZADD', 'webhooks:due', now + ask.lease_ms, id) else line_up(id) end
  if signing then
    redis.call('HSET', key, 'claim', ask.token, 'claimed_until_ms', now + ask.lease_ms)
    return {id, hook.url, signing, deliveries}
  end
end
