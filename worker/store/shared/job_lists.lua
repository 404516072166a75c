-- include: clock, states
-- The lists that a job is in.

local JOBS_LISTED_MS = 31 * 86400 * 1000 -- a little longer than the record of an ended job
-- interval between trims of a list, because each costs two writes and a job is in ten lists
local TRIMMED_MS = 3600 * 1000
local TRIMMED_AT_ONCE = 500

local function put_into(lists, job_id, job)
  for _, key in ipairs(lists) do redis.call('ZADD', key, job.queued_ms, job_id) end
end

-- Remove old entries, and let unused lists expire. Done when a job leaves a list, and when it starts and ends.
local function trim(lists)
  for _, key in ipairs(lists) do
    local left = redis.call('PTTL', key)
    if left ~= -2 and left < JOBS_LISTED_MS then -- the list is new, or was not trimmed for an hour
      local old = redis.call('ZCOUNT', key, '-inf', now_ms() - JOBS_LISTED_MS)
      if old > 0 then redis.call('ZREMRANGEBYRANK', key, 0, math.min(old, TRIMMED_AT_ONCE) - 1) end
      -- if more are left, the next job trims again
      redis.call('PEXPIRE', key, JOBS_LISTED_MS + (old > TRIMMED_AT_ONCE and -1 or TRIMMED_MS))
    end
  end
end

local function has_ended(job)
  return not next(MAY_FOLLOW[job.state])
end

-- The lists of the account and of the operators that a job is in: those that are independent of its state, and those
-- for its state. One list is by the first digits of its ID, for searches.
local function job_lists(job_id, job)
  local mine = 'account:' .. job.account .. ':jobs'
  local of_server = mine .. ':server:' .. job.server
  local of_state = {mine .. ':' .. job.state, of_server .. ':' .. job.state, 'jobs:state:' .. job.state}
  if not has_ended(job) then of_state[4] = 'jobs:node:' .. job.node .. ':' .. job.state end
  local to_find = 'jobs:id:' .. string.sub(job_id, 1, 3)
  return {
    mine, of_server, 'jobs', 'jobs:kind:' .. job.kind, 'jobs:node:' .. job.node, 'jobs:server:' .. job.server, to_find,
  }, of_state
end

local function list_job(job_id, job)
  for _, lists in ipairs({job_lists(job_id, job)}) do put_into(lists, job_id, job) end
end
