-- include: states, records, nodes, transitions, conclude, job_reports, claims, off
-- A node publishes a job's outcome. Publishing it again changes nothing.
-- Also when full.
-- ask: {job, node, owner, result (see `conclude`), report (see `keep_report`), power: the server's current power
-- state, '' if unknown}
-- Answers {'published'}, or why nothing was changed: {'lease_lost'}, {'job_unknown'}, {'job_over'} or
-- {'claim_refused', reason}.
local ask = cjson.decode(ARGV[1])
local CAUSE_BYTES = 8192

-- Whether the result is one that a job of this kind can have.
local function is_possible(kind, result)
  local completed = result.state == 'completed'
  if not completed and result.state ~= 'failed' then return false end
  if completed ~= (result.failure_code == '') or completed and result.stranded == '1' then return false end
  if not string.find(result.failure_code, '^[a-z_]*$') or not fits(result.failure_code, 64) then return false end
  if not is_size(result.size_mb) or not fits(result.failure_cause or '', CAUSE_BYTES) then return false end
  local status = result.snapshot_status
  if kind == 'create' and status ~= 'completed' and (completed or status ~= 'failed') then return false end
  return result.undoable_ms == '' or completed and OVERWRITES[kind] == true
end

if not owns_lease(ask.node, ask.owner) then return {'lease_lost'} end
local job = read('job:' .. ask.job)
if not job then return {'job_unknown'} end
local refused = refuse_foreign_job(ask, 'finish', job)
if refused then return refused end
if job.state == 'completed' or job.state == 'failed' then return {'job_over'} end
if not is_possible(job.kind, ask.result) then
  return refuse_claim(ask, 'finish', 'result_impossible', 'job:' .. ask.job)
end
if job.state == 'queued' then become(ask.job, job, 'in_progress', {}) end -- Redis has lost the beginning of the job
-- The outcome counts, even if the node has added so much that its texts do not fit.
local texts = {ask.result.contents, ask.result.notes, ask.result.failure_cause}
local is_kept = keep_report(ask.job, job, ask.report)
if not may_add(ask.node, bytes_of(texts)) then
  is_kept, ask.result.contents, ask.result.notes, ask.result.failure_cause = false, '', '', ''
end
if not is_kept then refuse_claim(ask, 'finish', 'too_many', 'job:' .. ask.job) end
-- A customer who sees the end may request the next job at once, before the node reports its servers' power again.
local server = named(redis.call('HGETALL', 'server:' .. job.server))
if POWERS[ask.power] and server.node == job.node then
  redis.call('HSET', 'server:' .. job.server, 'power', ask.power)
  forget_report(job.node)
  -- a server that this job holds, and that is not stranded, is taken from the list by `conclude`
  if ask.power == 'on' and (server.stranded or server.job ~= ask.job) then back_on(job.server, server) end
end
conclude(ask.job, job, ask.result)
return {'published'}
