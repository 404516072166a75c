-- include: bounds, records
-- Requests with an Idempotency-Key.

local DRY_RUN_ANSWER_MS = 3600 * 1000 -- as long as its job is kept
local ANSWERS_DROPPED_AT_ONCE = 20

-- The keys of a stored answer, and of the list of all that its account or operator has, oldest first.
local function answer_keys(ask)
  local mine = 'idempotency:' .. (ask.idempotency.owner or ask.account)
  return mine .. ':' .. ask.idempotency.key, mine .. ':answers'
end

-- Delete the oldest answers if there are too many. An answer that has expired is still in the list.
local function keep_answers(answers)
  local over = redis.call('LLEN', answers) - bound('answers_per_account')
  for _ = 1, math.min(over, ANSWERS_DROPPED_AT_ONCE) do
    local key = redis.call('LPOP', answers)
    if not key or not string.find(key, '^idempotency:') then return end -- the list holds something else
    redis.call('DEL', key, (string.gsub(key, '^idempotency', 'token:answer'))) -- the latter: the secret in the answer
  end
end

-- The stored answer, as {'replayed', ...}, if the request has a key and was answered before; else nil.
local function replay(ask)
  if not ask.idempotency then return nil end
  local key = answer_keys(ask)
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
    local key, answers = answer_keys(ask)
    local kept_ms = ask.dry_run and DRY_RUN_ANSWER_MS or ask.idempotency.kept_ms
    redis.call('SET', key, seen, 'PX', kept_ms)
    redis.call('RPUSH', answers, key)
    redis.call('PEXPIRE', answers, ask.idempotency.kept_ms)
    keep_answers(answers)
  end
  return answer
end
