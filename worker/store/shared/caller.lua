-- include: clock, notes, rate, records
-- Authentication and rate limits of callers.

-- Look up a caller's token and count the call: for the token (for a service token, by the named account), or for the
-- address if there is no such token.
-- caller: {token: its key, '' for none, address, account: the account that the call names, '' for none, calls,
-- failed_logins, window_ms}
-- Returns the token's record or nil, the account, and {{field, value, ...} of the token, why Redis refused to count or
-- '', and if it counted: allowed, left, ms until one more call is allowed}.
local function count_call(caller)
  -- The counters are neither replicated nor persisted, so that a read does not cost a write to the disk.
  now_ms()
  redis.set_repl(redis.REPL_NONE)
  local token, fields
  if caller.token ~= '' then token, fields = look_up(caller.token) end
  local account, answer = caller.account, nil
  if token then
    if token.account ~= '' then account = token.account end
    local key = 'calls:' .. token.id .. ':' .. account
    answer = {fields, try(take, key, caller.calls, caller.window_ms)}
  else
    answer = {{}, try(take, 'calls:failed:' .. caller.address, caller.failed_logins, caller.window_ms)}
  end
  redis.set_repl(redis.REPL_ALL)
  return token, account, answer
end
