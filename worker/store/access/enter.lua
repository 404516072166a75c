-- include: caller, clock
-- Wraps another script, `body(ask)`: checks the caller, counts the call, runs the script if the caller is allowed to,
-- and adds an admitted job to the audit log. So a call is a single script.
-- ask: {what that script takes, but account and by; caller: {see `count_call`; account_is_named, permissions: of which
-- the token needs one, audit: the known fields of the entry, or nil: the front end adds it, audit_most}}
-- Answers {the answer of `authenticate`}; if the script was run also {its answer}, and 1 if the audit log has the call.
local ask = cjson.decode(ARGV[1])
local caller = ask.caller

local function may_call(token, account)
  if caller.account_is_named and caller.account ~= account or account == '' then return false end
  for _, permission in ipairs(caller.permissions) do
    if string.find(' ' .. (token.permissions or '') .. ' ', ' ' .. permission .. ' ', 1, true) then return true end
  end
  return false
end

-- Includes a job that was admitted before, for a repeated request. A dry run starts no job.
local function job_of(answer)
  local is_admitted = answer[1] == 'admitted' or answer[1] == 'replayed'
  return is_admitted and not ask.dry_run and answer[2] and answer[2][1]
end

-- snapshot_id: the created snapshot
local function add_to_audit(token, job_id, snapshot_id)
  local entry = caller.audit
  entry.at_ms = now_text()
  entry.token, entry.token_name, entry.account, entry.job = token.id, token.name, ask.account, job_id
  if snapshot_id then entry.made = 'snapshot ' .. snapshot_id end
  local many = redis.call('RPUSH', 'audit:new', cjson.encode(entry))
  if many > caller.audit_most then redis.call('RPOP', 'audit:new') end
  return many > 0 and many <= caller.audit_most and 1 or 0 -- many is 0 if the key has another type of data
end

local token, account, answer = count_call(caller)
-- while Redis refuses to count, the front end counts, and then runs the script alone
local is_counted = answer[2] == '' and answer[3] == 1
if not token or not is_counted or not may_call(token, account) then return {answer} end
ask.account, ask.by = account, {token = token.id, token_name = token.name}
local done = body(ask)
local job_id = caller.audit and done and job_of(done)
local snapshot_id = ask.kind == 'create' and job_id and done[3] and done[3][1]
return {answer, {done}, job_id and add_to_audit(token, job_id, snapshot_id) or 0}
