-- include: clock, records, states, job_lists, queue, events, kept, waits
-- Creates a job.

-- Write the job's record, hold its server (not for a dry run), add it to the node's queue, and give it to the gateway
-- that waits for it, or wake the node.
-- queue: {prefix, arq's record of a job in three parts: before_id, before_ms, after_ms, and expires_ms: of that record}
local function enqueue(job_id, job, queue)
  job.v, job.state, job.queued_ms, job.attempts = '1', 'queued', now_text(), '0'
  write('job:' .. job_id, job)
  list_job(job_id, job)
  if ONLY_LOOKS[job.kind] then
    redis.call('SADD', open_dry_runs(job.account), job_id)
    redis.call('PEXPIRE', open_dry_runs(job.account), DRY_RUN_RECORD_MS)
  else
    redis.call('HSET', 'server:' .. job.server, 'job', job_id)
  end
  redis.call('ZADD', 'jobs:waiting', job.queued_ms, job_id)
  if job.start_by_ms then redis.call('ZADD', 'jobs:start_by', job.start_by_ms, job_id) end
  -- arq's own record of the job. Its expiry is only a safety net: a job of a dead node fails long before.
  local payload = queue.before_id .. job_id .. queue.before_ms .. job.queued_ms .. queue.after_ms
  redis.call('SET', 'arq:job:' .. job_id, payload, 'PX', queue.expires_ms)
  redis.call('ZADD', queue.prefix .. job.node, job.queued_ms, job_id)
  tell(job_id, job)
  if not give_at_once(job_id, job) then wake(queue.prefix .. job.node .. ':wake') end
end
