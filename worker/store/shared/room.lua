-- include: states, kept, bounds
-- Refusals that keep Redis from becoming full.

-- A refusal if Redis has no room for this kind of request ('looks' or 'new'), else nil. If Redis is full, it
-- refuses writes itself.
local function refuse_if_full(kind)
  local about = redis.call('INFO', 'memory')
  local used = tonumber(string.match(about, 'used_memory:(%d+)'))
  local most = tonumber(string.match(about, 'maxmemory:(%d+)'))
  if used >= most * FULL_FROM[kind] and used < most then return {'refused', 'store_nearly_full'} end
end

-- A refusal if the account has too many dry runs that have not ended: they hold no server, so nothing else limits them.
local function refuse_dry_run(account)
  local most = bound('open_dry_runs_per_account')
  local open = redis.call('SCARD', open_dry_runs(account))
  if open >= most then return {'refused', 'too_many_dry_runs', tostring(most)} end
  return refuse_if_full('looks')
end
