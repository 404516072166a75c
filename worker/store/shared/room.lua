-- include: states, kept, bounds
-- Refusals that keep Redis from becoming full.

-- A refusal if Redis has no room for this kind of request ('looks', 'new' or 'changes'), else nil.
local function refuse_if_full(kind)
  local share = share_in_use()
  if share < FULL_FROM[kind] then return nil end
  return {'refused', share < 1 and 'store_nearly_full' or 'store_read_only'}
end

-- A refusal if the account has too many dry runs that have not ended: they hold no server, so nothing else limits them.
local function refuse_dry_run(account)
  local most = bound('open_dry_runs_per_account')
  local open = redis.call('SCARD', open_dry_runs(account))
  if open >= most then return {'refused', 'too_many_dry_runs', tostring(most)} end
  return refuse_if_full('looks')
end

-- A refusal if Redis has no room for longer texts of a customer than those that the record has.
local function refuse_growth(record, fields)
  local more = 0
  for _, field in ipairs({'description', 'labels', 'url'}) do
    if fields[field] then more = more + #fields[field] - #(record[field] or '') end
  end
  return more > 0 and refuse_if_full('changes') or nil
end
