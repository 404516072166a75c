-- include: clock, records, states
-- Decides which failed jobs can be retried.

-- A later job of the same server, or nil. Dry runs do not count: they change nothing.
local function later_job(job)
  local LOOKS = 200
  local list = 'jobs:server:' .. job.server
  local later = redis.call('ZREVRANGEBYSCORE', list, '+inf', '(' .. job.queued_ms, 'LIMIT', 0, LOOKS)
  for _, id in ipairs(later) do
    if not ONLY_LOOKS[redis.call('HGET', 'job:' .. id, 'kind')] then return id end
  end
  return later[LOOKS] -- only dry runs among the latest jobs: stop searching
end

-- Events since the job failed that a retry would override: {reason, argument, ...}.
local function newer_than(job, server, later, within_ms)
  local newer, ended_ms = later and {'later', later} or {}, number(job.finished_ms) or number(job.queued_ms)
  if now_ms() - ended_ms > within_ms then
    newer[#newer + 1], newer[#newer + 2] = 'old', string.format('%.0f', ended_ms)
  end
  if OVERWRITES[job.kind] and (server.power == 'on' or (number(server.ran_ms) or 0) > ended_ms) then
    newer[#newer + 1], newer[#newer + 2] = 'used', job.kind
  end
  return newer
end

-- Why a job is not retried: {'refused', code, ...}, or nil.
-- rule: {in_bulk: nobody has checked the individual job, so cancelled jobs are left out, and all but the last job of
-- each server, even with force, force: also if something newer is overridden, within_ms: how long after its failure a
-- job can be retried without force}
local function refuse_retry(job, rule)
  local function never(...) return {'refused', 'job_not_retryable', ...} end
  if job.state ~= 'failed' then return never(job.state) end
  if ONLY_LOOKS[job.kind] then return never('dry_run') end
  if job.retried_by then return never('retried', job.retried_by) end
  local server = look_up('server:' .. job.server) or {}
  -- A retry would find the server off and leave it off.
  if server.stranded and redis.call('EXISTS', 'job:' .. server.stranded) == 1 then
    return never('stranded', server.stranded)
  end
  local later = later_job(job)
  if rule.in_bulk and job.failure_code == 'cancelled' then return never('cancelled') end
  if rule.in_bulk and later then return never('later', later) end
  local newer = rule.force and {} or newer_than(job, server, later, rule.within_ms)
  return #newer > 0 and {'refused', 'retry_needs_force', unpack(newer)} or nil
end
