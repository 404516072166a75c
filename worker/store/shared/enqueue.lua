-- include: clock, records, states, job_lists, queue, events, kept, waits
-- Creates a job.

-- Write the job's record, hold its server (not for a dry run), add it to the node's queue, and give it to the gateway
-- that waits for it, or wake the node.
local function enqueue(job_id, job)
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
  redis.call('ZADD', queue_of(job.node), job.queued_ms, job_id)
  tell(job_id, job)
  if not give_at_once(job_id, job) then wake(queue_of(job.node) .. ':wake') end
end
