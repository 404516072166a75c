-- include: kept, bounds
-- What is refused so that Redis does not become full for everyone.

-- The shares of `maxmemory` from which they are refused. The rest is for deletes, restores and the ends of jobs.
local FULL_FOR_LOOKS, FULL_FOR_NEW = 0.8, 0.9

-- A refusal if Redis uses at least this share of its memory, else nil. If it is full, Redis itself refuses writes.
local function refuse_if_full(share)
  local about = redis.call('INFO', 'memory')
  local used = tonumber(string.match(about, 'used_memory:(%d+)'))
  local most = tonumber(string.match(about, 'maxmemory:(%d+)'))
  if used >= most * share and used < most then return {'refused', 'store_nearly_full'} end
end

-- A refusal if the account has too many dry runs that have not ended: they hold no server, so nothing else limits them.
local function refuse_dry_run(account)
  local most = bound('open_dry_runs_per_account')
  local open = redis.call('SCARD', open_dry_runs(account))
  if open >= most then return {'refused', 'too_many_dry_runs', tostring(most)} end
  return refuse_if_full(FULL_FOR_LOOKS)
end
