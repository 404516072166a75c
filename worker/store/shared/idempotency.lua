-- include: bounds, records
-- Requests with an Idempotency-Key.

local DRY_RUN_ANSWER_MS = 3600 * 1000 -- equals the retention of the job
local ANSWERS_DROPPED_AT_ONCE = 20

-- The keys of a stored answer, and of the list of all answers of its account or operator, oldest first.
local function answer_keys(ask)
  local mine = 'idempotency:' .. (ask.idempotency.owner or ask.account)
  return mine .. ':' .. ask.idempotency.key, mine .. ':answers'
end

-- Delete the oldest of `many` answers if there are too many. The list still contains expired answers.
local function keep_answers(answers, many)
  local over = many - bound('answers_per_account')
  for _ = 1, math.min(over, ANSWERS_DROPPED_AT_ONCE) do
    local key = redis.call('LPOP', answers)
    if not key or not string.find(key, '^idempotency:') then return end -- the list contains something else
    -- the second key has the secret of the answer
    redis.call('DEL', key, (string.gsub(key, '^idempotency', 'token:answer')))
  end
end

-- The stored answer if the request has a key and was answered before, with 'replayed' as its first element; else nil.
-- So every script that takes `idempotency` can also answer {'replayed', ...}.
local function replay(ask)
  if not ask.idempotency then return nil end
  local key = answer_keys(ask)
  local kept = redis.call('GET', key)
  demand_as_read(key) -- executing a request twice would be worse than refusing it
  if not kept then return nil end
  local seen = json(kept)
  if type(seen) ~= 'table' or type(seen.answer) ~= 'table' then return unreadable(key, 'it is no answer') end
  if seen.fingerprint ~= ask.idempotency.fingerprint then return {'refused', 'idempotency_key_reused'} end
  seen.answer[1] = 'replayed'
  return seen.answer
end

-- Store the answer under the request's key. Refusals are not stored, because they changed nothing and a repeated
-- request is evaluated again.
local function remember(ask, answer)
  if ask.idempotency and answer[1] == 'admitted' then
    local seen = cjson.encode({fingerprint = ask.idempotency.fingerprint, answer = answer})
    local key, answers = answer_keys(ask)
    local kept_ms = ask.dry_run and DRY_RUN_ANSWER_MS or ask.idempotency.kept_ms
    redis.call('SET', key, seen, 'PX', kept_ms)
    local many = redis.call('RPUSH', answers, key)
    redis.call('PEXPIRE', answers, ask.idempotency.kept_ms)
    keep_answers(answers, many)
  end
  return answer
end
