-- include: clock, records, deliveries, idempotency, show, room
-- Create or change a webhook, or give it a new secret.
-- ask: {account, id, most (only to create), fields: {field: text}, secret, old_ms: how long the previous secret
-- stays valid, idempotency (see `replay`)}
-- Answers {'admitted', webhook (see `show_webhook`), secret or ''} or {'refused', code}.
local ask = cjson.decode(ARGV[1])
local key, all = 'webhook:' .. ask.id, 'account:' .. ask.account .. ':webhooks'

local function put()
  if ask.most then
    if redis.call('ZCARD', all) >= ask.most then return {'refused', 'webhook_limit_reached'} end
    local refused = refuse_if_full('new')
    if refused then return refused end
    local now = now_ms()
    redis.call('ZADD', all, now, ask.id)
    ask.fields.v, ask.fields.account, ask.fields.created_ms = '1', ask.account, tostring(now)
  else
    local hook = read_of(ask.account, key)
    if not hook then return {'refused', 'webhook_not_found'} end
    -- the answer with a new secret is kept for a day
    local refused = ask.secret and refuse_if_full('changes') or refuse_growth(hook, ask.fields)
    if refused then return refused end
  end
  if next(ask.fields) then write(key, ask.fields) end
  if ask.fields.enabled == '1' then redis.call('HDEL', key, 'failing_since_ms', 'disabled_reason') end
  if ask.secret then
    -- Nodes may not read keys that begin with `token:`; see deploy/redis/users.acl.
    local before = redis.call('HGET', 'token:webhook:' .. ask.id, 'secret')
    write('token:webhook:' .. ask.id, {secret = ask.secret, old = before or '', old_until_ms = now_ms() + ask.old_ms})
  end
  line_up(ask.id)
  return {'admitted', show_webhook(ask.id)}
end

-- The secret of the first request. It is not in the stored answer, which nodes may read.
local function first_secret()
  if not ask.secret or not ask.idempotency then return ask.secret or '' end
  local kept = 'token:answer:' .. ask.account .. ':' .. ask.idempotency.key
  demand(kept, 'string')
  redis.call('SET', kept, ask.secret, 'NX', 'PX', ask.idempotency.kept_ms)
  return redis.call('GET', kept)
end

local answer = replay(ask) or remember(ask, put())
if answer[1] ~= 'refused' then answer[3] = first_secret() end
return answer
