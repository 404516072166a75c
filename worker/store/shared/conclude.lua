-- include: clock, records, states, job_lists, queue, transitions, stats, snapshots, retention, removal, events
-- include: kept, off, health
-- The end of a job.

-- snapshot: its record, which is in progress, or completed if a node has just lost it.
local function settle_create(id, snapshot, result, now)
  redis.call('HSET', 'snapshot:' .. id, 'status', result.snapshot_status, 'size_mb', result.size_mb)
  if result.snapshot_status == 'completed' and (result.contents or '') ~= '' then
    redis.call('HSET', 'snapshot:' .. id, 'contents', result.contents)
  end
  if result.snapshot_status == 'failed' then
    free_slot(id, snapshot) -- it stays listed, but the customer can retry at once
    redis.call('ZADD', 'snapshots:failed', now, id)
    if snapshot.status == 'in_progress' then keep_failure(id, snapshot) end -- otherwise a node has lost it
  end
end

-- Put a failed job into the operators' lists.
local function list_failure(job_id, job, result, now)
  if result.failure_code == '' then return end
  local list = {'jobs:error:' .. result.failure_code}
  put_into(list, job_id, job)
  trim(list)
  if result.stranded == '1' then
    redis.call('HSET', 'server:' .. job.server, 'stranded', job_id)
    redis.call('ZADD', 'servers:stranded', now, job.server)
  end
end

-- Store the codes of a job's notes for the audit log, which is kept longer than the job. Not those of a dry run, whose
-- notes only say what would be done.
local function audit_notes(job_id, job, result)
  if (result.audited_codes or '') ~= '' and not ONLY_LOOKS[job.kind] then
    redis.call('SET', 'job:' .. job_id .. ':noted', result.audited_codes, 'PX', result.note_codes_ms)
  end
end

-- A failed delete is retried with growing delays, because its cause is rarely temporary.
local function put_off_delete(id, job, result, now)
  local failures = 1
  -- not counted, because another tool is working on the server, which is temporary
  if job.started_ms and result.failure_code ~= 'server_busy' then
    failures = redis.call('HINCRBY', 'snapshot:' .. id, 'failed_deletes', 1)
  end
  local wait = tonumber(result.retry_ms) * 2 ^ math.min(failures - 1, 16)
  wait = math.min(wait, tonumber(result.retry_most_ms or result.retry_ms))
  redis.call('ZADD', 'node:' .. job.node .. ':deleting', now + wait, id)
end

-- End a job: set its state, take it out of its node's queue, settle its snapshot, release its server.
-- result: state, kept_ms: retention of the job's record, failure_code, failure_detail, failure_cause: for operators
-- only, or '', stranded, downtime_seconds, snapshot_status, size_mb, retry_ms, retry_most_ms, undoable_ms, notes and
-- contents (JSON or ''), note_codes, audited_codes, note_codes_ms
local function conclude(job_id, job, result)
  local now, has_begun = now_ms(), job.state == 'in_progress'
  local changes = {
    finished_ms = now_text(), failure_code = result.failure_code, failure_detail = result.failure_detail,
    stranded = result.stranded, downtime_seconds = result.downtime_seconds, step = job.step,
  }
  -- a worker of an earlier version sends neither notes nor contents
  for _, field in ipairs({'failure_cause', 'notes', 'contents'}) do
    if (result[field] or '') ~= '' then changes[field] = result[field] end
  end
  become(job_id, job, result.state, changes)
  if not has_begun then rank_by_queue(job.node) end
  forget_queued(job_id, job)
  audit_notes(job_id, job, result)
  count_end(job, result, now)
  note_end(job, result)
  list_failure(job_id, job, result, now)
  local snapshot = look_up('snapshot:' .. job.snapshot)
  if snapshot and snapshot.server ~= job.server then snapshot = nil end
  if snapshot and job.kind == 'create' and snapshot.status == 'in_progress' then
    settle_create(job.snapshot, snapshot, result, now)
    local keep = snapshot.schedule and number(redis.call('HGET', 'schedule:' .. snapshot.schedule, 'keep'))
    if keep then rotate(scheduled_snapshots(job.server, snapshot.schedule), keep, job.node) end
  end
  if snapshot and job.kind == 'delete' then
    if result.state == 'completed' then
      forget_snapshot(job.snapshot, snapshot)
    else
      put_off_delete(job.snapshot, job, result, now)
    end
  end
  if redis.call('HGET', 'server:' .. job.server, 'job') == job_id then
    redis.call('HDEL', 'server:' .. job.server, 'job')
  end
  local is_off = result.stranded == '1' and redis.call('HGET', 'server:' .. job.server, 'power') ~= 'on'
  if job.off_ms and not is_off then forget_off(job_id, job.server) end
  if result.undoable_ms ~= '' then
    redis.call('HSET', 'job:' .. job_id, 'undoable_until_ms', now + tonumber(result.undoable_ms))
    redis.call('HSET', 'server:' .. job.server, 'undoable', job_id) -- only the latest restore
  end
  local started_ms = number(job.started_ms)
  if result.state == 'completed' and started_ms then
    local durations = 'node:' .. job.node .. ':milliseconds:' .. job.kind
    redis.call('LPUSH', durations, now - started_ms)
    redis.call('LTRIM', durations, '0', '19')
  end
  tell(job_id, job, result.note_codes)
  keep_job(job_id, job, result.kept_ms) -- comes last, because it reads the server's record
end
