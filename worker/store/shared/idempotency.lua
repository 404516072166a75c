-- include: records
-- Requests with an Idempotency-Key.

-- The key of a stored answer: of the account, or of the operator.
local function answer_key(ask)
  return 'idempotency:' .. (ask.idempotency.owner or ask.account) .. ':' .. ask.idempotency.key
end

-- The stored answer, as {'replayed', ...}, if the request has a key and was answered before; else nil.
local function replay(ask)
  if not ask.idempotency then return nil end
  local key = answer_key(ask)
  demand(key, 'string') -- to do it a second time would be worse than to refuse it
  local kept = redis.call('GET', key)
  if not kept then return nil end
  local seen = json(kept)
  if type(seen) ~= 'table' or type(seen.answer) ~= 'table' then return unreadable(key, 'it is no answer') end
  if seen.fingerprint ~= ask.idempotency.fingerprint then return {'refused', 'idempotency_key_reused'} end
  seen.answer[1] = 'replayed'
  return seen.answer
end

-- Store the answer under the request's key. Not a refusal: it has changed nothing, and a repeated request is decided
-- again.
local function remember(ask, answer)
  if ask.idempotency and answer[1] == 'admitted' then
    local seen = cjson.encode({fingerprint = ask.idempotency.fingerprint, answer = answer})
    redis.call('SET', answer_key(ask), seen, 'PX', ask.idempotency.kept_ms)
  end
  return answer
end
