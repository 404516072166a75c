-- Requests with an Idempotency-Key.

-- Where the answer to a request with a key is kept: its account's, or an operator's own.
local function answer_key(ask)
  return 'idempotency:' .. (ask.idempotency.owner or ask.account) .. ':' .. ask.idempotency.key
end

-- The answer that the request was given before, as {'replayed', ...}, if it has a key and it is not its first time;
-- else nil.
local function replay(ask)
  local seen = ask.idempotency and redis.call('GET', answer_key(ask))
  if not seen then return nil end
  seen = cjson.decode(seen)
  if seen.fingerprint ~= ask.idempotency.fingerprint then return {'refused', 'idempotency_key_reused'} end
  seen.answer[1] = 'replayed'
  return seen.answer
end

-- Keep what was answered under the request's key. A refusal has changed nothing: asked again it is decided anew.
local function remember(ask, answer)
  if ask.idempotency and answer[1] == 'admitted' then
    local seen = cjson.encode({fingerprint = ask.idempotency.fingerprint, answer = answer})
    redis.call('SET', answer_key(ask), seen, 'PX', ask.idempotency.kept_ms)
  end
  return answer
end
