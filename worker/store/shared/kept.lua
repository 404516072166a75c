-- include: clock, records, states, job_lists, removal, bounds
-- How many ended jobs and failed snapshots are kept, and for how long.

local DRY_RUN_KEPT_MS = 3600 * 1000
local DRY_RUN_RECORD_MS = 24 * 3600 * 1000 -- a record must still exist when it is removed from its lists
local LOG_OF_COMPLETED_MS = 24 * 3600 * 1000 -- the largest field of a job, and rarely read if nothing went wrong
local DROPPED_AT_ONCE, LOOKED_AT = 20, 100 -- per list, each time a job ends
local FAILURES_LOOKED_AT = 100 -- per server and per account, each time a snapshot fails
local FAILURES_LISTED_MS = 8 * 86400 * 1000 -- a day longer than their records

local function open_dry_runs(account)
  return 'account:' .. account .. ':dry_runs:open'
end

-- Delete a job that has ended, and its entries in all lists.
local function forget_job(id, job)
  for _, lists in ipairs({job_lists(id, job)}) do
    for _, key in ipairs(lists) do redis.call('ZREM', key, id) end
  end
  if (job.failure_code or '') ~= '' then redis.call('ZREM', 'jobs:error:' .. job.failure_code, id) end
  local key = 'job:' .. id
  redis.call('DEL', key, key .. ':steps', key .. ':log', key .. ':noted')
end

-- Whether a server's record still refers to the job, which must be resolved or can be undone.
local function is_needed(id, job)
  local held, stranded, undoable = unpack(redis.call('HMGET', 'server:' .. job.server, 'job', 'stranded', 'undoable'))
  return held == id or stranded == id or undoable == id and now_ms() <= (number(job.undoable_until_ms) or 0)
end

-- Delete the oldest ended jobs of a list of the account until `most` are left; but not the job that has just ended.
-- dry_runs: the list of ended ones, which must not displace other jobs
local function keep_latest(list, most, dry_runs, just_ended)
  local lists = {list .. ':completed', list .. ':failed'}
  local over = redis.call('ZCARD', lists[1]) + redis.call('ZCARD', lists[2]) - most
  if over > 0 then over = over - redis.call('ZCARD', dry_runs) end
  if over <= 0 then return end
  local oldest = {}
  for _, key in ipairs(lists) do
    local found = redis.call('ZRANGE', key, 0, LOOKED_AT - 1, 'WITHSCORES')
    for i = 1, #found, 2 do oldest[#oldest + 1] = {id = found[i], ms = tonumber(found[i + 1]), key = key} end
  end
  table.sort(oldest, function(one, other) return one.ms < other.ms end)
  local left = math.min(over, DROPPED_AT_ONCE)
  for _, one in ipairs(oldest) do
    if left == 0 then return end
    local job = look_up('job:' .. one.id)
    if redis.call('EXISTS', 'job:' .. one.id) == 0 then
      redis.call('ZREM', one.key, one.id)
      left = left - 1
    elseif job and one.id ~= just_ended and not is_needed(one.id, job) then
      forget_job(one.id, job)
      left = left - 1
    end
  end
end

-- Delete the oldest ended dry runs in a list that is sorted by their end: those up to before_ms, at most `limit`.
-- Returns their number.
local function forget_dry_runs(list, before_ms, limit)
  local ids = redis.call('ZRANGEBYSCORE', list, '-inf', before_ms, 'LIMIT', 0, limit)
  for _, id in ipairs(ids) do
    local job = look_up('job:' .. id)
    if job then
      redis.call('ZREM', 'account:' .. job.account .. ':dry_runs', id)
      forget_job(id, job)
    end
    redis.call('ZREM', list, id)
    redis.call('ZREM', 'dry_runs', id)
  end
  return #ids
end

-- Keep the record of a job that has just ended for kept_ms at most, and delete the oldest jobs of its account and
-- server beyond the bounds.
local function keep_job(id, job, kept_ms)
  local mine = 'account:' .. job.account
  if job.state == 'completed' then redis.call('PEXPIRE', 'job:' .. id .. ':log', LOG_OF_COMPLETED_MS) end
  if ONLY_LOOKS[job.kind] then
    redis.call('PEXPIRE', 'job:' .. id, DRY_RUN_RECORD_MS)
    redis.call('SREM', open_dry_runs(job.account), id)
    local ended = mine .. ':dry_runs'
    for _, key in ipairs({ended, 'dry_runs'}) do redis.call('ZADD', key, now_ms(), id) end
    redis.call('PEXPIRE', ended, DRY_RUN_RECORD_MS)
    local over = redis.call('ZCARD', ended) - bound('dry_runs_per_account')
    if over > 0 then forget_dry_runs(ended, '+inf', math.min(over, DROPPED_AT_ONCE)) end
    return
  end
  redis.call('PEXPIRE', 'job:' .. id, kept_ms)
  local looks = mine .. ':dry_runs'
  keep_latest(mine .. ':jobs:server:' .. job.server, history_bound('jobs_per_server'), looks, id)
  keep_latest(mine .. ':jobs', history_bound('jobs_per_account'), looks, id)
end

-- Delete the record of a failed snapshot, unless a disk may still have the snapshot. Other snapshots are not deleted.
local function forget_failure(id, account)
  local snapshot = look_up('snapshot:' .. id)
  if not snapshot or snapshot.account ~= account or snapshot.status ~= 'failed' or snapshot.lost then return false end
  forget_snapshot(id, snapshot)
  return true
end

-- Delete the oldest failed snapshots of a server beyond the bound.
local function keep_failures_of_server(server_id, account)
  local list, over = 'server:' .. server_id .. ':snapshots', -bound('failed_snapshots_per_server')
  over = over + redis.call('ZCARD', list) - redis.call('SCARD', 'server:' .. server_id .. ':counted')
  if over <= 0 then return end
  for _, id in ipairs(redis.call('ZRANGE', list, 0, FAILURES_LOOKED_AT - 1)) do
    if over <= 0 then return end
    if forget_failure(id, account) then over = over - 1 end
  end
end

-- Count a failed snapshot, and delete the oldest ones of its server and account beyond the bounds.
local function keep_failure(id, snapshot)
  local mine = 'account:' .. snapshot.account .. ':snapshots:failed'
  redis.call('ZADD', mine, now_ms(), id)
  redis.call('PEXPIRE', mine, FAILURES_LISTED_MS)
  keep_failures_of_server(snapshot.server, snapshot.account)
  local over = math.min(redis.call('ZCARD', mine) - bound('failed_snapshots_per_account'), FAILURES_LOOKED_AT)
  if over <= 0 then return end
  for _, old in ipairs(redis.call('ZRANGE', mine, 0, over - 1)) do
    forget_failure(old, snapshot.account)
    redis.call('ZREM', mine, old) -- removes it even if it has another account or was found again
  end
end
